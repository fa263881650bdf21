"""Certificates of a test authority, made during the test."""

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


class Authority:
    """A certificate authority. `certificate`: the file that clients need to trust it."""

    def __init__(self, folder):
        self._folder = folder
        folder.mkdir()
        folder.chmod(0o711)
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _name(folder.name)
        authority = x509.BasicConstraints(ca=True, path_length=None)
        self.certificate = self._write("ca.crt", _certified(self._name, self._key, self._name, self._key, authority))

    def issue(self, host):
        """(certificate, key): the files for a server with that host name."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host)])
        certificate = self._write(f"{host}.crt", _certified(_name(host), key, self._name, self._key, names))
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return certificate, self._write(f"{host}.key", text)

    def _write(self, name, text):
        path = self._folder / name
        path.write_bytes(text)
        return path


def _name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certified(name, key, issuer, issuer_key, extension):
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(issuer, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    )
    return builder.sign(issuer_key, SHA256()).public_bytes(Encoding.PEM)
