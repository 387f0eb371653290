"""Certificates for a Dask cluster that speaks TLS: certificates.py FOLDER.

Writes ca.pem, dask.pem and dask-key.pem, valid for a year, and dask.yaml, the configuration that
makes scheduler, workers and client use them: set DASK_CONFIG to the folder.
"""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID = timedelta(days=365)

CONFIG = """\
distributed:
  comm:
    require-encryption: true
    default-scheme: tls
    tls:
      ca-file: {folder}/ca.pem
      scheduler: {{cert: {folder}/dask.pem, key: {folder}/dask-key.pem}}
      worker: {{cert: {folder}/dask.pem, key: {folder}/dask-key.pem}}
      client: {{cert: {folder}/dask.pem, key: {folder}/dask-key.pem}}
"""


def certificate(name, key, issuer, issuer_key):
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    own = issuer is None
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if own else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + VALID)
        .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca = certificate("isochunk CA", ca_key, None, ca_key)
    pem = serialization.Encoding.PEM
    # The key of the CA is not kept: a new cluster gets new certificates.
    (folder / "ca.pem").write_bytes(ca.public_bytes(pem))
    (folder / "dask.pem").write_bytes(certificate("dask", key, ca, ca_key).public_bytes(pem))
    private = folder / "dask-key.pem"
    private.touch(mode=0o600)
    private.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    (folder / "dask.yaml").write_text(CONFIG.format(folder=folder.resolve()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
