"""Networks of isochunk as packages for the BioImage Model Zoo (bioimage.io).

``script`` makes TorchScript of a network at one block and tries it against isochunk's own answer,
``description`` says in the zoo's words what it takes and gives, ``write`` does it all. What reads
packages is ``isochunk.models.zoo``.
"""
