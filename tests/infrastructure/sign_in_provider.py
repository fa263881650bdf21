"""A real OpenID Connect provider behind a proxy, which can forge its answers and simulate failures."""

import base64
import hashlib
import hmac
import json
import sys
from functools import partial
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import eventlet
import eventlet.wsgi
import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from eventlet.event import Event
from werkzeug import Request, Response

from nameko_reliable.testing.servers import Server, free_port

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/jwks"
TOKEN = "/oauth2/token"


class SignInProvider:
    """oidc-provider-mock behind a proxy.

    By default the proxy only replaces the signatures of id_tokens, since oidc-provider-mock's tokens don't name their
    key, and those of most providers do.

    settings: with them a service is a client of this provider.
    requested_paths: in the order of the requests.
    token_requests: the forms sent to the token endpoint, with the `username` and `password` of their header.
    token_answers: the JSON answers of the token endpoint.
    """

    def __init__(self, folder):
        self._upstream = f"http://127.0.0.1:{free_port()}"
        self._server = Server(
            "sign-in-provider",
            folder,
            [sys.executable, "-m", "oidc_provider_mock", "--port", self._upstream.rpartition(":")[2]],
            is_ready=self._is_up,
        )
        self._server.start().wait_until_ready()
        self._port = free_port()
        self._serving = None
        self._hanging = Event()
        self._key = _Key()
        self.issuer = f"http://localhost:{self._port}"
        self.settings = {
            "GOOGLE_CLIENT_ID": "forage-tests",
            "GOOGLE_CLIENT_SECRET": "the client's secret/+%",
            "OIDC_ISSUER": self.issuer,
            "GOOGLE_REDIRECT_URI": "http://localhost:8080/api/auth/google/callback",
        }
        self.reset()

    def reset(self):
        """Start it if necessary, and undo all changes and recordings. Logins are kept."""
        self._hanging.send()
        self._hanging = Event()
        self._answers, self._changes, self._claims = {}, {}, {}
        self._keys, self._sign = [self._key], self._key.sign
        self._delay_seconds = 0
        self.requested_paths, self.token_requests, self.token_answers = [], [], []
        if self._serving is None:
            self.start()

    def log_in(self, url, email="ada@forage.example", email_verified=True, name="Ada Forager", subject=None):
        """Logs a person in at an authorization URL. Returns (code, state) of the final redirect.

        subject: the email address by default. A claim that is None is left out.
        """
        subject = subject or email
        claims = {"email": email, "email_verified": email_verified, "name": name}
        claims = {name: value for name, value in claims.items() if value is not None}
        assert requests.put(f"{self._upstream}/users/{quote(subject, safe='')}", json=claims, timeout=10).ok
        page = requests.get(url, timeout=10)
        assert "Authorize Client" in page.text, page.text
        answer = requests.post(url, data={"sub": subject}, allow_redirects=False, timeout=10)
        back = answer.headers["Location"]
        assert back.startswith(parse_qs(urlsplit(url).query)["redirect_uri"][0] + "?"), back
        query = parse_qs(urlsplit(back).query)
        return query["code"][0], query["state"][0]

    def start(self):
        self._listener = eventlet.listen(("127.0.0.1", self._port), reuse_port=False)
        self._serving = eventlet.spawn(
            eventlet.wsgi.server, self._listener, self._serve, log_output=False, keepalive=False
        )

    def stop(self):
        """Refuse connections until `start`."""
        self._hanging.send()
        self._hanging = Event()
        self._serving.kill()
        self._listener.close()
        self._serving = None

    def end(self):
        if self._serving is not None:
            self.stop()
        self._server.kill()

    def answer(self, path, answer):
        """Answer this path with a WSGI application: a werkzeug Response, `hang`, `drip`, `flood` or `echo_request`."""
        self._answers[path] = answer

    def change(self, path, **members):
        """Change members of the JSON answer of a path; None removes one."""
        self._changes[path] = members

    def change_claims(self, **claims):
        """Change claims of the id_tokens; None removes one. The signatures stay valid."""
        self._claims = claims

    def pass_through(self):
        """Pass the provider's own keys and tokens through unchanged."""
        self._keys, self._sign = None, None

    def send_unsigned_tokens(self):
        self._sign = partial(_compact, {"alg": "none", "kid": self._key.id}, sign=lambda _: b"")

    def sign_with_the_public_key(self):
        """By HMAC with the public key as its secret: valid for a client that takes the algorithm from the token."""
        header = {"alg": "HS256", "kid": self._key.id}
        secret = self._key.public_pem()
        self._sign = partial(_compact, header, sign=lambda text: hmac.digest(secret, text, hashlib.sha256))

    def sign_with_another_key(self):
        """With the key id of the published key."""
        self._sign = _Key(key_id=self._key.id).sign

    def sign_with_new_key(self, algorithm="RS256", published=True, only=False, with_key_id=True):
        """only: remove the other published keys. with_key_id: name the key in the tokens."""
        key = _Key(algorithm)
        if published:
            self._keys = [key] if only else [*self._keys, key]
        self._sign = key.sign if with_key_id else key.sign_without_key_id

    def hang(self, environ, start_response):
        """Accepts a request and sends no answer."""
        self._hanging.wait()
        return Response(status=503)(environ, start_response)

    def drip(self, environ, start_response):
        """Sends an endless answer, one byte at a time."""
        start_response("200 OK", [("Content-Type", "application/json")])
        hanging = self._hanging
        while not hanging.ready():
            yield b" "
            eventlet.sleep(0.01)

    def flood(self, environ, start_response):
        """Sends an endless answer as fast as the client reads."""
        start_response("200 OK", [("Content-Type", "application/json")])
        hanging = self._hanging
        while not hanging.ready():
            yield b" " * 65536
            eventlet.sleep(0)

    def echo_request(self, environ, start_response):
        """A refusal that quotes the whole request."""
        request = Request(environ)
        words = f"{request.authorization} {dict(request.form)} {dict(request.headers)}"
        return Response(json.dumps({"error": words, "error_description": words}), 400)(environ, start_response)

    def delay_answers(self, seconds):
        """Delay each answer."""
        self._delay_seconds = seconds

    def _serve(self, environ, start_response):
        request = Request(environ)
        self.requested_paths.append(request.path)
        if request.path == TOKEN:
            self.token_requests.append({**request.form, **request.authorization.parameters})
        eventlet.sleep(self._delay_seconds)
        answer = self._answers.get(request.path) or self._pass_on(request)
        return answer(environ, start_response)

    def _pass_on(self, request):
        """The provider's answer, with the requested changes."""
        upstream = requests.request(
            request.method,
            self._upstream + request.full_path,
            # The provider takes its issuer from the Host header.
            headers={**request.headers, "Host": request.host},
            data=request.form.to_dict(flat=False) or request.get_data(),
            allow_redirects=False,
            timeout=10,
        )
        content = upstream.content
        if request.path in (DISCOVERY, KEYS, TOKEN) and upstream.ok:
            content = json.dumps(self._changed(request.path, upstream.json()))
        headers = {name: upstream.headers[name] for name in ("Content-Type", "Location") if name in upstream.headers}
        return Response(content, upstream.status_code, headers)

    def _changed(self, path, answer):
        if path == KEYS and self._keys:
            answer["keys"] = [key.public_jwk() for key in self._keys]
        if path == TOKEN and self._sign:
            claims = jwt.decode(answer["id_token"], options={"verify_signature": False})
            answer["id_token"] = self._sign(_merged(claims, self._claims))
        answer = _merged(answer, self._changes.get(path, {}))
        if path == TOKEN:
            self.token_answers.append(answer)
        return answer

    def _is_up(self):
        try:
            return requests.get(self._upstream + DISCOVERY, timeout=1).ok
        except requests.RequestException:
            return False


class _Key:
    def __init__(self, algorithm="RS256", key_id=None):
        self.algorithm = algorithm
        self.id = key_id or uuid4().hex
        is_rsa = algorithm.startswith("RS")
        self._private = rsa.generate_private_key(65537, 2048) if is_rsa else ec.generate_private_key(ec.SECP256R1())

    def sign(self, claims):
        return jwt.encode(claims, self._private, self.algorithm, headers={"kid": self.id})

    def sign_without_key_id(self, claims):
        return jwt.encode(claims, self._private, self.algorithm)

    def public_pem(self):
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def public_jwk(self):
        jwk = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self._private.public_key(), as_dict=True)
        return {**jwk, "kid": self.id, "use": "sig", "alg": self.algorithm}


def _compact(header, claims, sign):
    """The compact form of a token, with any signature."""
    text = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    return b".".join((text, _base64url(sign(text)))).decode()


def _base64url(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def _merged(members, changes):
    return {name: value for name, value in {**members, **changes}.items() if value is not None}
