"""Advice for errors of S3 and botocore about sessions, keys, regions, archived objects and certificates."""

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    LoginError,
    MetadataRetrievalError,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

from enrich.storage.store import Problem

HOW_TO_SIGN_IN = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is attached"

_DENIED, _FAILED, _GONE = Problem.ACCESS_DENIED, Problem.FAILED, Problem.NOT_FOUND
_SIGN_IN_AGAIN = "the session has expired; sign in again (aws sso login), or renew AWS_SESSION_TOKEN"
_KEY = "the access key is not known there; check AWS_ACCESS_KEY_ID, AWS_PROFILE and AWS_ENDPOINT_URL"
_REGION = "the bucket is in another region; set AWS_DEFAULT_REGION to its region"
_KMS = "its KMS key cannot be used; enable the key, and grant kms:Decrypt and kms:GenerateDataKey on it"
_BUSY = "the endpoint asks for fewer requests; lower download_threads, or run again later"
_ACCOUNT = "the account behind the bucket is suspended or may not be billed; ask its owner"
# An archived object is access_denied, which is retried: it has the same etag once it is restored.
_BY_CODE = {
    "InvalidObjectState": (_DENIED, "archived; restore it (aws s3api restore-object) and run again"),
    "ExpiredToken": (_DENIED, _SIGN_IN_AGAIN),
    "ExpiredTokenException": (_DENIED, _SIGN_IN_AGAIN),
    "TokenRefreshRequired": (_DENIED, _SIGN_IN_AGAIN),
    "InvalidToken": (_DENIED, "AWS_SESSION_TOKEN does not belong to the access key; set all three again"),
    "InvalidAccessKeyId": (_DENIED, _KEY),
    "InvalidClientTokenId": (_DENIED, _KEY),
    "UnrecognizedClientException": (_DENIED, _KEY),
    "SignatureDoesNotMatch": (
        _DENIED,
        "the secret is not that of the access key; check AWS_SECRET_ACCESS_KEY, and a proxy that alters requests",
    ),
    "RequestTimeTooSkewed": (_FAILED, "this machine's clock is wrong by more than 15 minutes; set it"),
    "RequestExpired": (_FAILED, "this machine's clock is wrong by more than 15 minutes; set it"),
    "PermanentRedirect": (_FAILED, _REGION),
    "TemporaryRedirect": (_FAILED, "the bucket is being moved or was just made; run again in an hour"),
    "AuthorizationHeaderMalformed": (_FAILED, _REGION),
    "IllegalLocationConstraintException": (_FAILED, _REGION),
    "NoSuchBucket": (_GONE, "there is no such bucket; create it or check the name"),
    "KMS.DisabledException": (_DENIED, _KMS),
    "KMS.NotFoundException": (_DENIED, _KMS),
    "KMS.KMSInvalidStateException": (_DENIED, _KMS),
    "KMS.InvalidStateException": (_DENIED, _KMS),
    "KMS.InvalidKeyUsageException": (_DENIED, _KMS),
    "SlowDown": (_FAILED, _BUSY),
    "RequestLimitExceeded": (_FAILED, _BUSY),
    "TooManyRequests": (_FAILED, _BUSY),
    "AccountProblem": (_DENIED, _ACCOUNT),
    "AllAccessDisabled": (_DENIED, _ACCOUNT),
    "InvalidPayer": (_DENIED, _ACCOUNT),
}  # fmt: skip
_BY_TYPE: tuple[tuple[type[BotoCoreError] | tuple[type[BotoCoreError], ...], Problem, str], ...] = (
    (
        (SSOError, TokenRetrievalError, NoAuthTokenError), _DENIED,
        "the session of this profile has expired or was never started; run aws sso login (--profile NAME)",
    ),
    (LoginError, _DENIED, "the session has expired; run aws login"),
    (ProfileNotFound, _DENIED, "there is no such profile; check AWS_PROFILE, AWS_CONFIG_FILE and ~/.aws/config"),
    (PartialCredentialsError, _DENIED, "half of a key pair; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        MetadataRetrievalError, _DENIED,
        f"this machine's role gave no credentials; attach a role that may be used here, or {HOW_TO_SIGN_IN}",
    ),
    (CredentialRetrievalError, _DENIED, f"the credentials could not be obtained; {HOW_TO_SIGN_IN}"),
    (NoCredentialsError, _DENIED, HOW_TO_SIGN_IN),
    (SSLError, _FAILED, "its certificate is not accepted; set AWS_CA_BUNDLE to its authority's file"),
    (ProxyConnectionError, _FAILED, "the proxy cannot be reached; check HTTPS_PROXY and NO_PROXY"),
)  # fmt: skip


def advice_on(error: Exception) -> tuple[Problem, str] | None:
    """The problem behind an error of boto3, and what to do about it; None if no entry here matches."""
    if isinstance(error, ClientError):
        said = error.response.get("Error", {})
        known = _BY_CODE.get(str(said.get("Code", "")))
        if known is None and "kms:" in str(said.get("Message", "")).lower():  # AccessDenied, by the key's policy
            return _DENIED, _KMS
        if known is None and error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 301:
            return _FAILED, _REGION  # to HEAD, which has no body to say more
        return known
    return next(((kind, advice) for types, kind, advice in _BY_TYPE if isinstance(error, types)), None)
