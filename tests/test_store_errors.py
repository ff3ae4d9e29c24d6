"""Each error of the driver has a counterpart in our tree, and says what to do."""

from __future__ import annotations

import inspect
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bson.errors
import pymongo.errors
import pytest
from pymongo import InsertOne, MongoClient
from pymongo.errors import BulkWriteError, ClientBulkWriteException, InvalidOperation, OperationFailure, PyMongoError

from pilot.errors import (
    ConfigError,
    DocumentTooLarge,
    DuplicateKey,
    InvalidInput,
    PilotError,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreRejected,
    StoreUnavailable,
)
from pilot.store.mongo import Store, connect, duplicates, redact, translated, translating

pytestmark = pytest.mark.any_documents

COUNTERPARTS: dict[str, type[PilotError]] = {
    "pymongo.errors.AutoReconnect": StoreUnavailable,
    "pymongo.errors.BulkWriteError": StoreRejected,
    "pymongo.errors.ClientBulkWriteException": StoreRejected,
    "pymongo.errors.CollectionInvalid": StoreRejected,
    "pymongo.errors.ConfigurationError": ConfigError,
    "pymongo.errors.ConnectionFailure": StoreUnavailable,
    "pymongo.errors.CursorNotFound": StoreUnavailable,
    "pymongo.errors.DocumentTooLarge": DocumentTooLarge,
    "pymongo.errors.DuplicateKeyError": DuplicateKey,
    "pymongo.errors.EncryptedCollectionError": StoreRejected,
    "pymongo.errors.EncryptionError": StoreRejected,
    "pymongo.errors.ExecutionTimeout": StoreUnavailable,
    "pymongo.errors.InvalidName": InvalidInput,
    "pymongo.errors.InvalidOperation": StoreRejected,
    "pymongo.errors.InvalidURI": InvalidInput,
    "pymongo.errors.NetworkTimeout": StoreUnavailable,
    "pymongo.errors.NotPrimaryError": StoreUnavailable,
    "pymongo.errors.OperationFailure": StoreRejected,
    "pymongo.errors.ProtocolError": StoreUnavailable,
    "pymongo.errors.PyMongoError": StoreRejected,
    "pymongo.errors.ServerSelectionTimeoutError": StoreUnavailable,
    "pymongo.errors.WTimeoutError": StoreUnavailable,
    "pymongo.errors.WaitQueueTimeoutError": StoreUnavailable,
    "pymongo.errors.WriteConcernError": StoreUnavailable,
    "pymongo.errors.WriteError": StoreRejected,
    "bson.errors.BSONError": StoreRejected,
    "bson.errors.InvalidBSON": StoreRejected,
    "bson.errors.InvalidDocument": StoreRejected,
    "bson.errors.InvalidId": StoreRejected,
    "bson.errors.InvalidStringData": StoreRejected,
}

MAKE: dict[str, Callable[[type[Any]], Exception]] = {
    "BulkWriteError": lambda kind: kind({"writeErrors": [{"code": 2, "errmsg": "bad"}]}),
    "ClientBulkWriteException": lambda kind: kind({"writeErrors": [{"code": 2, "errmsg": "bad"}]}, True),
    "DuplicateKeyError": lambda kind: kind("bad", 11000, {"keyPattern": {"_id": 1}}),
    "EncryptionError": lambda kind: kind(ValueError("bad")),
    "EncryptedCollectionError": lambda kind: kind(ValueError("bad"), {}),
}


def public_classes() -> dict[str, type[Exception]]:
    return {
        f"{thing.__module__}.{name}": thing
        for module in (pymongo.errors, bson.errors)
        for name, thing in vars(module).items()
        if not name.startswith("_") and inspect.isclass(thing) and issubclass(thing, Exception)
    }


@pytest.mark.parametrize("name", sorted(public_classes()))
def test_every_class_of_the_driver_has_its_counterpart(name: str) -> None:
    assert name in COUNTERPARTS, f"{name} is new in the driver: decide what it means, in store.mongo and here"
    kind = public_classes()[name]
    exc = MAKE[kind.__name__](kind) if kind.__name__ in MAKE else kind("bad")
    with pytest.raises(COUNTERPARTS[name], match=r"cannot try it in X: .+; .+") as caught, translating("try it", "X"):
        raise exc
    assert type(caught.value) is COUNTERPARTS[name]
    assert caught.value.__cause__ is exc


def test_no_counterpart_is_left_over() -> None:
    assert set(COUNTERPARTS) <= set(public_classes())


@pytest.mark.parametrize(
    ("code", "text", "ours"),
    [
        (18, "Authentication failed.", StoreDenied),
        (13, "not authorized", StoreDenied),
        (8000, "bad auth : authentication failed", StoreDenied),
        (8000, "you are over your space quota, using 512 MB of 512 MB", StoreFull),
        (14031, "", StoreFull),
        (12501, "quota exceeded", StoreFull),
        (1, "28: No space left on device", StoreFull),
        (10107, "not primary", StoreUnavailable),
        (13435, "not primary and secondaryOk=false", StoreUnavailable),
        (13436, "node is recovering", StoreUnavailable),
        (11600, "interrupted at shutdown", StoreUnavailable),
        (11602, "interrupted due to repl state change", StoreUnavailable),
        (91, "shutdown in progress", StoreUnavailable),
        (189, "primary stepped down", StoreUnavailable),
        (50, "operation exceeded time limit", StoreUnavailable),
        (112, "write conflict", StoreUnavailable),
        (10334, "BSONObj size is invalid", DocumentTooLarge),
        (17419, "resulting document after update is larger than 16777216", DocumentTooLarge),
        (59, "no such command", StoreRejected),
        (None, "?", StoreRejected),
    ],
)
def test_failed_operations_are_told_apart_by_their_code(code: int | None, text: str, ours: type[PilotError]) -> None:
    exc = OperationFailure(text, code, {"errmsg": text, "code": code})
    assert type(translated(exc, "x")) is ours
    in_bulk = {"writeErrors": [{"index": 0, "code": code, "errmsg": text}], "writeConcernErrors": []}
    assert type(translated(BulkWriteError(in_bulk), "x")) is ours


def test_a_retryable_label_means_unknown() -> None:
    exc = OperationFailure("?", 123456, {"errorLabels": ["RetryableWriteError"]})
    assert type(translated(exc, "x")) is StoreUnavailable


def test_the_error_wrapped_by_another_counts() -> None:
    wrapped = pymongo.errors.EncryptionError(pymongo.errors.NetworkTimeout("late"))
    assert type(translated(wrapped, "x")) is StoreUnavailable
    top = {"error": pymongo.errors.NetworkTimeout("late"), "writeErrors": []}
    assert type(translated(ClientBulkWriteException(top, False), "x")) is StoreUnavailable


@pytest.mark.parametrize("text", ["BSON document too large (17 bytes)", "Document would overflow BSON size limit"])
def test_what_the_encoder_finds_too_large(text: str) -> None:
    assert type(translated(bson.errors.InvalidDocument(text), "x")) is DocumentTooLarge


DUPLICATE = {"index": 0, "code": 11000, "errmsg": "E11000", "keyPattern": {"_id": 1}, "keyValue": {"_id": "a"}}
OTHER_INDEX = {**DUPLICATE, "keyPattern": {"name": 1}, "keyValue": {"name": "a"}}
INVALID = {"index": 1, "code": 121, "errmsg": "Document failed validation"}
LATE = {"code": 64, "errmsg": "waiting for replication timed out", "errInfo": {"wtimeout": True}}
FULL = {"index": 1, "code": 14031, "errmsg": "out of disk space"}


@pytest.mark.parametrize(
    ("errors", "concerns", "ours"),
    [
        ([OTHER_INDEX], [], StoreRejected),
        ([DUPLICATE, OTHER_INDEX], [], StoreRejected),
        ([DUPLICATE, INVALID], [], StoreRejected),
        ([DUPLICATE], [LATE], StoreUnavailable),
        ([], [LATE], StoreUnavailable),
        ([DUPLICATE, FULL], [LATE], StoreFull),
        ([], [{"code": 1, "errmsg": "No space left on device"}], StoreFull),
        ([], [], StoreRejected),
    ],
)
def test_duplicates_hide_nothing_worse(
    errors: list[Mapping[str, Any]], concerns: list[Mapping[str, Any]], ours: type[StoreError]
) -> None:
    exc = BulkWriteError({"writeErrors": errors, "writeConcernErrors": concerns})
    with pytest.raises(ours, match="cannot add them") as caught:
        duplicates(exc, "add them")
    assert type(caught.value) is ours
    assert caught.value.__cause__ is exc


def test_duplicates_by_the_operation_where_the_server_does_not_say_the_key() -> None:
    error = {"index": 0, "code": 11000, "errmsg": "E11000", "op": {"_id": "b"}}
    assert duplicates(BulkWriteError({"writeErrors": [DUPLICATE, error]})) == ["a", "b"]


# -- the message ------------------------------------------------------------------------------------


def test_a_message_is_short_and_holds_no_documents() -> None:
    details = {"errmsg": "it failed " + "x" * 500, "secret": "do not show"}
    text = str(translated(OperationFailure("it failed", 1, details), "try", "there"))
    assert text.startswith("cannot try in there: it failed xxx")
    assert "do not show" not in text
    assert len(text) < 450


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), translating("x"):
        raise KeyError("mine")
    mine = StoreFull("said already")
    with pytest.raises(StoreFull) as caught, translating("x"):
        raise mine
    assert caught.value is mine


def test_as_a_decorator_it_names_the_store_and_refuses_generators() -> None:
    @translating("look")
    def look(store: Store) -> None:
        raise PyMongoError("bad")

    with pytest.raises(StoreRejected, match=r"cannot look in database 'p' at mongodb://h:1/: bad"):
        look(Store("mongodb://h:1/", "p"))
    with pytest.raises(TypeError, match="generator"):

        @translating("look")
        def each() -> Iterator[int]:
            yield 1


# -- passwords --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("mongodb://h:27017/", "mongodb://h:27017/"),
        ("mongodb://u:SECRET@h,g:1/db?w=1", "mongodb://u:***@h,g:1/db?w=1"),
        ("mongodb://u@h/?authMechanism=MONGODB-X509", "mongodb://u@h/?authMechanism=MONGODB-X509"),
        ("mongodb+srv://u:SECRET@cluster.example.org", "mongodb+srv://u:***@cluster.example.org"),
        ("mongodb://u:SECRET@[::1]:27017/?tls=true", "mongodb://u:***@[::1]:27017/?tls=true"),
        (
            "mongodb://h/?tlsCertificateKeyFilePassword=SECRET&tls=true",
            "mongodb://h/?tlsCertificateKeyFilePassword=***&tls=true",
        ),
        (
            "mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:SECRET",
            "mongodb://h/?authMechanismProperties=***",
        ),
        ("mongodb://u:SECRET@SECRET@h/", "mongodb://***@h/"),
        ("mongodb://u:SECRET/SECRET@h/db", "mongodb://***@h/db"),
        ("mongodb://u:SECRET@SECRET/SECRET@h/db", "mongodb://***@h/db"),
        ("mongodb://u:SECRET?SECRET@h/db", "mongodb://***@h/db"),
        ("mongodb://u:SECRET?a=SECRET@h/db", "mongodb://***@h/db"),
        ("mongodb://u:SECRET", "mongodb://***"),
        ("u:SECRET@h", "mongodb://***@h"),
        ("SECRET", "mongodb://***"),
    ],
)
def test_redacted_uris_hold_no_password(uri: str, shown: str) -> None:
    assert redact(uri) == shown
    assert "SECRET" not in repr(Store(uri, "p"))


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://u:SECRET/SECRET@h/db",
        "mongodb://u:SECRET@SECRET@h/",
        "mongodb://u:SECRET",
        "http://u:SECRET@h/",
        "mongodb://u:SECRET@h:99999999/",
        "mongodb://u:SECRET@h/?authMechanism=SECRET",
        "mongodb://u:SECRET@h/?tls=SECRET",
        "mongodb://u:SECRET@h/?unknownOption=1",
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_without_its_password(uri: str) -> None:
    with pytest.raises(InvalidInput, match="cannot use") as caught, Store(uri, "p", timeout_s=0.1):
        pass
    assert "SECRET" not in str(caught.value).replace("=SECRET", "")
    assert caught.value.__cause__ is None


# -- the real thing ---------------------------------------------------------------------------------


def test_whatever_the_uri_says_the_guarantees_hold() -> None:
    uri = (
        "mongodb://h/?w=0&journal=false&readPreference=secondary&readPreferenceTags=dc:x&readConcernLevel=local"
        "&compressors=zlib&maxStalenessSeconds=120&maxPoolSize=500&appName=x&tz_aware=false&timeoutMS=5;wtimeoutMS=1"
        "&directConnection=true&retryWrites=false"
    )
    with connect(uri, 2.0) as client:
        assert client.write_concern.document == {"w": "majority", "j": True, "wtimeout": 2000}
        assert client.read_concern.level == "majority"
        assert client.read_preference.mode == 0
        assert client.codec_options.tz_aware
        pool = client.options.pool_options
        assert pool.max_pool_size == 8
        assert pool.appname == "pilot"
        assert pool.socket_timeout == 2.0
        assert pool._compression_settings is None or not pool._compression_settings.compressors
        assert client.options.timeout is None
        assert client.options.direct_connection is True  # the rest is the user's
        assert client.options.retry_writes is False


def test_a_store_opens_writes_and_closes(store: Store, mongod_uri: str) -> None:
    assert mongod_uri not in repr(store)
    names = ["tasks", "provenance", "functions", "environments", "pilots", "pools", "meta", "events"]
    assert [getattr(store, name).name for name in names] == names
    with Store(mongod_uri, store.database.name) as other:
        other.tasks.insert_one({"_id": "a"})
        tasks = other.tasks
    assert store.tasks.count_documents({}) == 1
    with pytest.raises(StoreRejected, match="after close"), translating("count"):
        tasks.count_documents({})


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        refused = Store(f"mongodb://u:SECRET@127.0.0.1:{port}/", "p", timeout_s=0.2)
        with pytest.raises(
            StoreUnavailable, match=rf"cannot open the store in database 'p' .*{port}.*refused"
        ) as caught:
            refused.__enter__()
    assert "SECRET" not in str(caught.value)
    assert "Topology" not in str(caught.value)


def test_wrong_password_and_no_password(mongod_uri: str) -> None:
    place = mongod_uri.rpartition("@")[2]
    with pytest.raises(StoreDenied, match="Authentication failed"), Store(f"mongodb://pilot:WRONG@{place}", "p"):
        pass
    anonymous = f"mongodb://{place.replace('authSource=admin&', '')}"
    with pytest.raises(StoreDenied), Store(anonymous, "p") as opened, translating("read"):
        opened.tasks.find_one()


def test_a_bad_database_name_is_refused(mongod_uri: str) -> None:
    with pytest.raises(InvalidInput, match="cannot open the store"), Store(mongod_uri, "a b"):
        pass


@pytest.mark.parametrize(
    ("document", "ours"),
    [
        ({"_id": "there"}, DuplicateKey),
        ({"_id": "big", "x": "x" * 17_000_000}, DocumentTooLarge),
        ({"_id": "int", "x": 2**64}, DocumentTooLarge),
        ({"_id": "object", "x": object()}, StoreRejected),
        ({"_id": "text", "x": "\ud800"}, StoreRejected),
        ({"_id": {"$bad": 1}}, StoreRejected),
    ],
)
def test_documents_that_cannot_be_stored(store: Store, document: dict[str, Any], ours: type[StoreError]) -> None:
    store.tasks.insert_one({"_id": "there"})
    with pytest.raises(ours) as caught, translating("insert"):
        store.tasks.insert_one(document)
    assert type(caught.value) is ours
    assert len(str(caught.value)) < 600


def test_endless_nesting_cannot_be_stored(store: Store) -> None:
    document: dict[str, Any] = {}
    document["x"] = document
    with pytest.raises(DocumentTooLarge), translating("insert"):
        store.tasks.insert_one(document)


def test_duplicates_of_a_real_bulk_write(store: Store) -> None:
    store.tasks.insert_many([{"_id": "a"}, {"_id": "b"}])
    with pytest.raises(BulkWriteError) as caught:
        store.tasks.insert_many([{"_id": "b"}, {"_id": "c"}, {"_id": "a"}], ordered=False)
    assert sorted(duplicates(caught.value)) == ["a", "b"]
    assert store.tasks.count_documents({}) == 3

    store.tasks.create_index("name", unique=True, sparse=True)
    with pytest.raises(BulkWriteError) as caught:
        store.tasks.bulk_write(
            [InsertOne({"name": "x"}), InsertOne({"name": "x"}), InsertOne({"_id": "a"})], ordered=False
        )
    with pytest.raises(StoreRejected):
        duplicates(caught.value)


def test_a_query_over_its_time_limit_is_unknown(store: Store) -> None:
    store.tasks.insert_many([{} for _ in range(2000)])
    slow = {"$where": "sleep(1); return true"}
    with pytest.raises(StoreUnavailable), translating("search"):
        store.tasks.find_one(slow, max_time_ms=20, sort=[("x", 1)])


def test_the_client_of_the_driver_is_used_as_it_is() -> None:
    """`InvalidOperation` after close comes from the driver: if that changes, look at `Store.__exit__`."""
    client: MongoClient[dict[str, Any]] = MongoClient(connect=False)
    client.close()
    with pytest.raises(InvalidOperation):
        client.admin.command("ping")
