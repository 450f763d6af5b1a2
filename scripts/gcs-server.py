"""What riverrun needs of Google Cloud Storage's XML API, made of moto's S3 server: where the two differ, requests are rewritten.

    gcs-server.py PORT ACCOUNT_FILE

It has a bucket `riverrun` and one account, whose key it makes and writes to the file. No emulator known to us takes writes by that
API, least of all conditional ones. This one says no where Google does, but it was written from Google's documentation: it proves
what riverrun sends and makes of the answers, not that Google gives them.
"""

import base64
import json
import sys

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import Client
from werkzeug.wrappers import Response

key = rsa.generate_private_key(65537, 2048)


def write_account(file, url):
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    account = {
        "client_email": "riverrun@localhost",
        "private_key_id": "1",
        "private_key": key.private_bytes(*form).decode(),
        "gcs_base_url": url,
    }
    with open(file, "w") as out:
        json.dump(account, out)


def authorized(header):
    """True for a token (JWT) that was signed with the key."""
    signed, _, signature = header.removeprefix("Bearer ").rpartition(".")
    try:
        decoded = base64.urlsafe_b64decode(signature + "==")
        key.public_key().verify(decoded, signed.encode(), padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def refused(status, code, message):
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(body, status, content_type="application/xml; charset=UTF-8")


def google(s3):
    def answer(environ, start_response):
        respond = s3
        if not authorized(environ.get("HTTP_AUTHORIZATION", "")):
            respond = refused(401, "AuthenticationRequired", "Authentication required.")
        # moto looks for the service in it.
        environ["HTTP_AUTHORIZATION"] = "AWS4-HMAC-SHA256 Credential=riverrun/20260101/us-east-1/s3/aws4_request"
        if environ["REQUEST_METHOD"] in ("PUT", "POST", "DELETE"):
            # Google heeds these on reads alone.
            for header in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"):
                environ.pop(header, None)
            condition = environ.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None)
            if condition is not None and ("upload" in environ["QUERY_STRING"] or condition != "0"):
                respond = refused(400, "NotImplemented", "A condition that is not implemented.")
            elif condition is not None:
                environ["HTTP_IF_NONE_MATCH"] = "*"
        return respond(environ, start_response)

    return answer


port, file = sys.argv[1:]
s3 = DomainDispatcherApplication(create_backend_app)
assert Client(s3).put("/riverrun").status_code == 200
write_account(file, f"http://127.0.0.1:{port}")
run_simple("127.0.0.1", int(port), google(s3), threaded=True, request_handler=MotoRequestHandler)
