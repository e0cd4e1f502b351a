"""Verifiers of a user pass the type checker."""

from push_to_poll_client.listeners.verifiers import (
    HMACSignature,
    Verified,
    Verifier,
    WebhookRequest,
    basic,
    bearer,
    dropbox,
    github,
    header_token,
    no_verification,
    standard_webhooks,
    stripe,
    svix,
    token_in_body,
    websub,
)


def by_hand(request: WebhookRequest) -> bool:
    return request.headers.get("x-token") == "abc"


async def by_asking(request: WebhookRequest) -> Verified | None:
    return Verified(once=(request.body,)) if request.body else None


class WithHeadersFirst:
    def may_pass(self, request: WebhookRequest) -> bool:
        return "x-token" in request.headers

    def __call__(self, request: WebhookRequest, /) -> Verified | bool:
        return self.may_pass(request)


VERIFIERS: list[Verifier] = [
    by_hand,
    by_asking,
    WithHeadersFirst(),
    HMACSignature(["new", b"old"], header="x-signature", algorithm=("sha1", "sha256"), prefix="{algorithm}="),
    github("s"),
    stripe(("a", "b"), tolerance=60),
    dropbox(b"s"),
    websub("s"),
    standard_webhooks("whsec_c2VjcmV0"),
    svix(["whsec_c2VjcmV0"], tolerance=60),
    header_token("t", "X-Gitlab-Token"),
    bearer("t"),
    basic("u", "p"),
    token_in_body(["t"], "value.clientState"),
    no_verification(),
]


def test_every_kind_of_verifier_passes_the_type_check() -> None:
    assert all(callable(verify) for verify in VERIFIERS)
