"""Declare the signatures of well-known vendors."""

from push_to_poll_client.listeners.verifiers._hmac import TOLERANCE, HMACSignature, Secrets


def github(secret: Secrets) -> HMACSignature:
    """GitHub: `X-Hub-Signature-256` over the body (docs.github.com, "Validating webhook deliveries").

    Nothing that GitHub signs says when it was sent, and the id of a delivery is not signed: whoever has seen a
    delivery can send it again at any time, by any id. So the body alone makes a repetition, and so does the id,
    which a redelivery keeps. The bodies of two events differ by what they speak of and by when that was changed;
    those of two equal `workflow_dispatch` or `repository_dispatch` may not, and the second of them is then taken
    for a repetition for as long as the first is remembered. Who needs it declares an `HMACSignature` with
    `once=["{body}{x-github-delivery}"]`, by which a repetition with another id is a wake.

    Args:
        secret: The webhook's, or several.

    Raises:
        TypeError: It is neither `str` nor `bytes`.
        ValueError: It is empty.
    """
    return HMACSignature(
        secret, header="X-Hub-Signature-256", prefix="sha256=", once=["{body}", "{x-github-delivery}"]
    )


def stripe(secret: Secrets, *, tolerance: float = TOLERANCE) -> HMACSignature:
    """Stripe: `Stripe-Signature: t=…,v1=…` (docs.stripe.com, "Verify webhook signatures manually").

    A retry is signed anew, so it is no repetition. Stripe's own libraries take timestamps from any future; here
    they lie within the tolerance, so that what is remembered of a request is bounded.

    Args:
        secret: The endpoint's, used as it is: "whsec_" is part of it.
        tolerance: Seconds that a timestamp may lie before the receiver's clock, or after it.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`, or the tolerance is no number.
        ValueError: A secret is empty, or the tolerance is not above 0.
    """
    return HMACSignature(
        secret, header="Stripe-Signature", separator=",", prefix="v1=", timestamp="t=", tolerance=tolerance
    )


def dropbox(app_secret: Secrets) -> HMACSignature:
    """Dropbox: `X-Dropbox-Signature` over the body (dropbox.com/developers/reference/webhooks).

    Nothing tells a repetition from a push: all pushes for an account have the same body. Whoever has seen one can
    send it again, which is an early poll within the rate limit.

    Args:
        app_secret: The app's, or several.

    Raises:
        TypeError: It is neither `str` nor `bytes`.
        ValueError: It is empty.
    """
    return HMACSignature(app_secret, header="X-Dropbox-Signature")


def websub(secret: Secrets) -> HMACSignature:
    """WebSub: `X-Hub-Signature: method=…` over the body, by any of its four methods (W3C REC §8).

    What the hub sends is the topic's content, which may be what it was before: no repetition can be told.

    Args:
        secret: The `hub.secret` of the subscription, or several while one replaces the other.

    Raises:
        TypeError: It is neither `str` nor `bytes`.
        ValueError: It is empty.
    """
    return HMACSignature(
        secret, header="X-Hub-Signature", prefix="{algorithm}=", algorithm=("sha1", "sha256", "sha384", "sha512")
    )
