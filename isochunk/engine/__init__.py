"""A plan carried out, recorded and proved.

One block from storage to storage (``pipeline``), the loop over all (``loop``), the record
(``ledger``, ``events``, ``report``), and what is asked of it afterwards (``target``, ``audit`` with
``auditor`` and ``holes``).
``local`` runs blocks in this process; of Dask nothing is known here.
"""
