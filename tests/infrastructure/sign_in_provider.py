"""A real OpenID Connect provider, behind a front that can forge what it says, and fail at the test's word."""

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
    """oidc-provider-mock, seen through a front.

    Unless it is told otherwise, the front does but one thing: it signs the id_tokens anew, since
    oidc-provider-mock's don't name their key, as those of most providers do.

    settings: what makes a service a client of it.
    asked: the paths that were asked for, in order.
    token_requests: the forms that came to the token endpoint, with the `username` and `password` of their header.
    token_answers: the JSON that left it.
    """

    def __init__(self, folder):
        self._behind = f"http://127.0.0.1:{free_port()}"
        self._server = Server(
            "sign-in-provider",
            folder,
            [sys.executable, "-m", "oidc_provider_mock", "--port", self._behind.rpartition(":")[2]],
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
        """Up, honest, and with nothing remembered but who logged in."""
        self._hanging.send()
        self._hanging = Event()
        self._answers, self._changes, self._claims = {}, {}, {}
        self._keys, self._sign = [self._key], self._key.sign
        self._delay_seconds = 0
        self.asked, self.token_requests, self.token_answers = [], [], []
        if self._serving is None:
            self.start()

    def log_in(self, url, email="ada@forage.example", email_verified=True, name="Ada Forager", subject=None):
        """Logs a person in where an authorization URL leads. Returns (code, state) of the redirect it ends in.

        subject: the address, unless given. None leaves out any other claim.
        """
        subject = subject or email
        claims = {"email": email, "email_verified": email_verified, "name": name}
        claims = {name: value for name, value in claims.items() if value is not None}
        assert requests.put(f"{self._behind}/users/{quote(subject, safe='')}", json=claims, timeout=10).ok
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
        """Connections are refused until `start`."""
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
        """Answer with this WSGI application: a werkzeug Response, or `hang`, `drip`, `flood`, `repeat_the_request`."""
        self._answers[path] = answer

    def change(self, path, **members):
        """Change members of the JSON that is answered; None leaves one out."""
        self._changes[path] = members

    def change_claims(self, **claims):
        """Change claims of the id_tokens; None leaves one out. They are signed as well as ever."""
        self._claims = claims

    def step_aside(self):
        """Leave the provider's own keys and tokens as they are."""
        self._keys, self._sign = None, None

    def leave_unsigned(self):
        self._sign = partial(_compact, {"alg": "none", "kid": self._key.id}, sign=lambda _: b"")

    def sign_with_the_public_key(self):
        """By HMAC, which whoever takes the algorithm from the token checks with the published key."""
        header = {"alg": "HS256", "kid": self._key.id}
        secret = self._key.public_pem()
        self._sign = partial(_compact, header, sign=lambda text: hmac.digest(secret, text, hashlib.sha256))

    def sign_with_another_key(self):
        """And claim that it is the published one."""
        self._sign = _Key(key_id=self._key.id).sign

    def sign_with_new_key(self, algorithm="RS256", published=True, alone=False, named=True):
        """alone: no other key is published any more. named: the tokens say which it is."""
        key = _Key(algorithm)
        if published:
            self._keys = [key] if alone else [*self._keys, key]
        self._sign = key.sign if named else key.sign_namelessly

    def hang(self, environ, start_response):
        """Hears, and says nothing."""
        self._hanging.wait()
        return Response(status=503)(environ, start_response)

    def drip(self, environ, start_response):
        """Begins an answer that never ends, a byte at a time."""
        start_response("200 OK", [("Content-Type", "application/json")])
        hanging = self._hanging
        while not hanging.ready():
            yield b" "
            eventlet.sleep(0.01)

    def flood(self, environ, start_response):
        """Says as much as anybody cares to read."""
        start_response("200 OK", [("Content-Type", "application/json")])
        hanging = self._hanging
        while not hanging.ready():
            yield b" " * 65536
            eventlet.sleep(0)

    def repeat_the_request(self, environ, start_response):
        """A refusal that quotes all that it was told."""
        request = Request(environ)
        words = f"{request.authorization} {dict(request.form)} {dict(request.headers)}"
        return Response(json.dumps({"error": words, "error_description": words}), 400)(environ, start_response)

    def slow_down(self, seconds):
        """Every answer takes so long."""
        self._delay_seconds = seconds

    def _serve(self, environ, start_response):
        request = Request(environ)
        self.asked.append(request.path)
        if request.path == TOKEN:
            self.token_requests.append({**request.form, **request.authorization.parameters})
        eventlet.sleep(self._delay_seconds)
        answer = self._answers.get(request.path) or self._pass_on(request)
        return answer(environ, start_response)

    def _pass_on(self, request):
        """What the provider behind answers, with the changes that were asked for."""
        behind = requests.request(
            request.method,
            self._behind + request.full_path,
            # Its issuer is what it is called.
            headers={**request.headers, "Host": request.host},
            data=request.form.to_dict(flat=False) or request.get_data(),
            allow_redirects=False,
            timeout=10,
        )
        content = behind.content
        if request.path in (DISCOVERY, KEYS, TOKEN) and behind.ok:
            content = json.dumps(self._changed(request.path, behind.json()))
        headers = {name: behind.headers[name] for name in ("Content-Type", "Location") if name in behind.headers}
        return Response(content, behind.status_code, headers)

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
            return requests.get(self._behind + DISCOVERY, timeout=1).ok
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

    def sign_namelessly(self, claims):
        return jwt.encode(claims, self._private, self.algorithm)

    def public_pem(self):
        return self._private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def public_jwk(self):
        jwk = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self._private.public_key(), as_dict=True)
        return {**jwk, "kid": self.id, "use": "sig", "alg": self.algorithm}


def _compact(header, claims, sign):
    """A token as it is written, with whatever signature."""
    text = b".".join(_base64url(json.dumps(part).encode()) for part in (header, claims))
    return b".".join((text, _base64url(sign(text)))).decode()


def _base64url(value):
    return base64.urlsafe_b64encode(value).rstrip(b"=")


def _merged(members, changes):
    return {name: value for name, value in {**members, **changes}.items() if value is not None}
