"""boto3 clients for control and writes, the translation of their errors, and limits on retries."""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3.session
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    HTTPClientError,
    IncompleteReadError,
    MetadataRetrievalError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from enrich.errors import Unreachable, UsageError
from enrich.storage.advice import HOW_TO_SIGN_IN, advice_on
from enrich.storage.store import Problem, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

ATTEMPTS = 5
# Standard mode: 5xx, 503 SlowDown and lost connections are retried, after waits with full jitter that double up to
# 20 s, as long as the client's budget of retries lasts (500 tokens, 5 to 10 a retry, one back for each success).
CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    connect_timeout=10,  # seconds
    read_timeout=60,
    max_pool_connections=64,
)
BROKEN_BODY = (ResponseStreamingError, IncompleteReadError, ReadTimeoutError, FlexibleChecksumError)


def make_client(uri: str) -> tuple[boto3.session.Session, "S3Client"]:
    """A session and its S3 client, found the standard way; UsageError if AWS_* variables or files are wrong."""
    try:
        session = boto3.session.Session()
        client = session.client("s3", config=CONFIG)
        endpoint = endpoint_of(client)
        if endpoint == client.meta.endpoint_url:
            return session, client
        return session, session.client("s3", config=CONFIG, endpoint_url=endpoint)  # requests are signed without it
    except ValueError:  # whose text repeats the endpoint, and a password in it
        raise UsageError(f"{uri}: AWS_ENDPOINT_URL is not a URL; write https://host") from None
    except BotoCoreError as error:  # an unknown profile, a broken configuration file
        _, advice = advice_on(error) or (None, "check the AWS_* variables")
        raise UsageError(f"{uri}: S3 is not set up: {_one_line(error)}; {advice}") from error


def one_shot_client(session: boto3.session.Session, endpoint: str, seconds: float) -> "S3Client":
    """A client without retries that waits at most `seconds` for a response."""
    config = CONFIG.merge(Config(retries={"total_max_attempts": 1}, read_timeout=seconds, connect_timeout=seconds))
    return session.client("s3", config=config, endpoint_url=endpoint)


@contextmanager
def opening(uri: str, bucket: str, client: "S3Client") -> Iterator[None]:
    """Turn errors of the first request to a bucket into UsageError with advice: Unreachable, if they may pass."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        kind = Unreachable if _may_pass(error) else UsageError
        raise kind(f"{uri}: {_why_closed(bucket, client, error)}") from error


def _may_pass(error: BotoCoreError | ClientError) -> bool:
    """Whether an endpoint, a proxy or a role's credentials are only away, or busy."""
    if isinstance(error, ClientError):
        return status_of(error) == 429 or status_of(error) >= 500
    away = HTTPClientError | BotoConnectionError | MetadataRetrievalError
    return isinstance(error, away) and not isinstance(error, SSLError)


def _why_closed(bucket: str, client: "S3Client", error: BotoCoreError | ClientError) -> str:
    """Why the first request to a bucket failed, and what to do."""
    if isinstance(error, NoCredentialsError):
        return f"no S3 credentials found (NoCredentialsError); {HOW_TO_SIGN_IN}"
    if isinstance(error, ClientError) and code_of(error) == "NoSuchBucket":
        return f"there is no bucket {bucket}; create it or check the name"
    if known := advice_on(error):
        reason = code_of(error) or status_of(error) if isinstance(error, ClientError) else type(error).__name__
        return f"{known[1]} ({reason})"
    if isinstance(error, HTTPClientError | BotoConnectionError):
        return f"{endpoint_of(client)} cannot be reached; check AWS_ENDPOINT_URL and the network"
    if not isinstance(error, ClientError):
        return f"{_one_line(error)}; check the AWS_* variables"
    if status_of(error) in (401, 403):
        return f"access denied ({code_of(error)}); grant s3:ListBucket or {HOW_TO_SIGN_IN}"
    return f"{_one_line(error)}; check the bucket and AWS_ENDPOINT_URL"


@contextmanager
def s3_errors(uri: str) -> Iterator[None]:
    """Turn errors of boto3 into StorageError."""
    try:
        yield
    except ClientError as error:
        if known := advice_on(error):
            kind, advice = known
        elif code_of(error) == "NoSuchKey" or status_of(error) == 404:
            kind, advice = Problem.NOT_FOUND, "check that it is still there"
        elif status_of(error) in (401, 403):
            kind, advice = Problem.ACCESS_DENIED, "check the credentials and the bucket's policy"
        else:
            kind, advice = Problem.FAILED, "run again"
        raise StorageError(kind, f"{uri}: {_one_line(error)}; {advice}") from error
    except (BotoCoreError, Boto3Error) as error:
        kind, advice = advice_on(error) or (Problem.FAILED, "check the network and run again")
        raise StorageError(kind, f"{uri}: {type(error).__name__}; {advice}") from error


def pause(attempt: int, uri: str, error: Exception) -> None:
    """Exponential back-off with full jitter: at most 0.2 s after the first attempt, 3.2 s after the fifth."""
    logger.info("%s: %s in attempt %d of %d", uri, type(error).__name__, attempt + 1, ATTEMPTS)
    time.sleep(random.uniform(0, 0.2 * 2**attempt))


def status_of(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def endpoint_of(client: "S3Client") -> str:
    """The endpoint without any user name or password in its URL."""
    parts = urlsplit(client.meta.endpoint_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
