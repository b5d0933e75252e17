"""boto3 clients for control and writes, the translation of their errors, and limits on retries."""

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, NoReturn
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
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
)
from botocore.exceptions import ConnectionError as BotoConnectionError

from enrich.errors import UsageError
from enrich.storage.advice import HOW_TO_SIGN_IN, advice_on
from enrich.storage.store import Problem, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

ATTEMPTS = 5
# Standard mode: 5xx, 503 SlowDown and lost connections are tried again, after waits with full jitter that double up to
# 20 s, as long as the client's budget of retries lasts (500 tokens, 5 to 10 a retry, one back for each success).
CONFIG = Config(
    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
    connect_timeout=10,  # seconds
    read_timeout=60,
    max_pool_connections=64,
)
BROKEN_BODY = (ResponseStreamingError, IncompleteReadError, ReadTimeoutError, FlexibleChecksumError)


class RetryBudget:
    """Limits the retries of a store that boto3 does not make itself: a retry takes a token, a success returns a tenth.

    Without a limit, thousands of objects would each be requested five times from an endpoint that fails permanently.
    """

    def __init__(self, tokens: float = 200.0) -> None:
        self._most = self._tokens = tokens
        self._lock = Lock()

    def succeeded(self) -> None:
        with self._lock:
            self._tokens = min(self._most, self._tokens + 0.1)

    def take(self) -> bool:
        """Whether there is a token for one more retry."""
        with self._lock:
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


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
    """Turn errors of the first request to a bucket into UsageError, with advice."""
    try:
        yield
    except NoCredentialsError as error:
        raise UsageError(f"{uri}: no S3 credentials found (NoCredentialsError); {HOW_TO_SIGN_IN}") from error
    except (BotoCoreError, ClientError) as error:
        _refuse(uri, bucket, client, error)


def _refuse(uri: str, bucket: str, client: "S3Client", error: BotoCoreError | ClientError) -> NoReturn:
    """Raises the UsageError for what the first request to a bucket raised."""
    known = advice_on(error)
    if isinstance(error, ClientError) and code_of(error) == "NoSuchBucket":
        raise UsageError(f"{uri}: there is no bucket {bucket}; create it or check the name") from error
    if known:
        reason = code_of(error) or status_of(error) if isinstance(error, ClientError) else type(error).__name__
        raise UsageError(f"{uri}: {known[1]} ({reason})") from error
    if isinstance(error, HTTPClientError | BotoConnectionError):
        where = endpoint_of(client)
        raise UsageError(f"{uri}: {where} cannot be reached; check AWS_ENDPOINT_URL and the network") from error
    if not isinstance(error, ClientError):
        raise UsageError(f"{uri}: {_one_line(error)}; check the AWS_* variables") from error
    if status_of(error) in (401, 403):
        reason = code_of(error)
        raise UsageError(f"{uri}: access denied ({reason}); grant s3:ListBucket or {HOW_TO_SIGN_IN}") from error
    raise UsageError(f"{uri}: {_one_line(error)}; check the bucket and AWS_ENDPOINT_URL") from error


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
    """The endpoint without a user name or password that its URL may carry."""
    parts = urlsplit(client.meta.endpoint_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
