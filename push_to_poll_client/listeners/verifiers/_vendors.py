"""HMAC signatures of well-known vendors."""

from push_to_poll_client.listeners.verifiers._hmac import TOLERANCE, HMACSignature, Secrets


def github(secret: Secrets) -> HMACSignature:
    """GitHub: `X-Hub-Signature-256` over the body (docs.github.com, "Validating webhook deliveries").

    GitHub signs neither a timestamp nor the delivery id, so anyone who has seen a delivery can send it again at
    any time, with any id. A request therefore counts as repeated if its body or its id was seen before; a
    redelivery keeps its id. Events usually differ in their bodies. Two equal `workflow_dispatch` or
    `repository_dispatch` events may not, and the second is then ignored while the first is remembered. If you need
    both, declare an `HMACSignature` with `once=["{body}{x-github-delivery}"]`; repetitions with another id then
    wake.

    Args:
        secret: The webhook's secret, or several that are all valid.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`.
        ValueError: A secret is empty.
    """
    return HMACSignature(
        secret, header="X-Hub-Signature-256", prefix="sha256=", once=["{body}", "{x-github-delivery}"]
    )


def stripe(secret: Secrets, *, tolerance: float = TOLERANCE) -> HMACSignature:
    """Stripe: `Stripe-Signature: t=…,v1=…` (docs.stripe.com, "Verify webhook signatures manually").

    Stripe signs each retry again, so a retry is not a repetition. Stripe's own libraries accept any future
    timestamp; here it must be within the tolerance, which bounds how long a request is remembered.

    Args:
        secret: The endpoint's secret, unchanged: "whsec_" is part of it.
        tolerance: Seconds that a timestamp may differ from the receiver's clock, in either direction.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`, or the tolerance is not a number.
        ValueError: A secret is empty, or the tolerance is not positive.
    """
    return HMACSignature(
        secret, header="Stripe-Signature", separator=",", prefix="v1=", timestamp="t=", tolerance=tolerance
    )


def dropbox(app_secret: Secrets) -> HMACSignature:
    """Dropbox: `X-Dropbox-Signature` over the body (dropbox.com/developers/reference/webhooks).

    Repetitions are not recognised, since all pushes for an account have the same body. An attacker who has seen
    one can send it again, which causes an early poll within the rate limit.

    Args:
        app_secret: The app's secret, or several that are all valid.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`.
        ValueError: A secret is empty.
    """
    return HMACSignature(app_secret, header="X-Dropbox-Signature")


def websub(secret: Secrets) -> HMACSignature:
    """WebSub: `X-Hub-Signature: method=…` over the body, with any of its four methods (W3C REC §8).

    Repetitions are not recognised: the hub sends the topic's content, which may be the same as before.

    Args:
        secret: The `hub.secret` of the subscription, or several that are all valid.

    Raises:
        TypeError: A secret is neither `str` nor `bytes`.
        ValueError: A secret is empty.
    """
    return HMACSignature(
        secret, header="X-Hub-Signature", prefix="{algorithm}=", algorithm=("sha1", "sha256", "sha384", "sha512")
    )
