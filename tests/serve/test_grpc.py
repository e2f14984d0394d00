"""The gRPC service, by its own client."""

import asyncio
import threading

import numpy as np
import pytest
import tritonclient.grpc as client
from google.protobuf import descriptor_pb2
from serving import rows, tensors, train
from test_serve import one_user, same, wanted
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from funnelrank.serve.app import Models
from funnelrank.serve.batching import Batcher
from funnelrank.serve.grpc_server import Service
from funnelrank.serve.metrics import Metrics
from funnelrank.serve.protocol import Limits
from funnelrank.serve.servable import Servable
from funnelrank.serve.service import FIELDS, MESSAGES


@pytest.fixture(scope="module")
def run(tmp_path_factory, no_pictures):
    return train(tmp_path_factory.mktemp("run") / "shop").folder


@pytest.fixture(scope="module")
def shop(run):
    return Servable.load(run, "shop")


class Running:
    def __init__(self, shop, token=None):
        self.batcher = Batcher(shop)
        models = Models({"shop": self.batcher}, Limits(rows=600), 10.0)
        self.service = Service(models, Metrics(dict), token)
        self.started, self.loop = threading.Event(), asyncio.new_event_loop()

    def __enter__(self):
        async def main():
            self.server = self.service.server()
            self.port = self.server.add_insecure_port("127.0.0.1:0")
            await self.server.start()
            self.stop = asyncio.Event()
            self.started.set()
            await self.stop.wait()
            await self.server.stop(1)
        self.thread = threading.Thread(target=lambda: self.loop.run_until_complete(main()), daemon=True)
        self.thread.start()
        assert self.started.wait(30)
        return client.InferenceServerClient(f"127.0.0.1:{self.port}")

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(30)
        self.batcher.close()


@pytest.fixture(scope="module")
def grpc(shop):
    with Running(shop) as one:
        yield one


def asked(sent):
    inputs = []
    for name, (datatype, array) in sent.items():
        inputs.append(client.InferInput(name, array.shape, datatype))
        inputs[-1].set_data_from_numpy(array)
    return inputs


def test_tritonclient_gets_what_predict_says_to_the_bit(grpc, shop, run):
    table = rows(37, 5)
    assert grpc.is_server_live() and grpc.is_server_ready() and grpc.is_model_ready("shop")
    assert grpc.get_server_metadata().name == "funnelrank"
    said = grpc.get_model_metadata("shop")
    assert {i.name: (i.datatype, list(i.shape)) for i in said.inputs}["tags"] == ("BYTES", [-1, -1])
    result = grpc.infer("shop", asked(tensors(table, shop.columns)), request_id="7")
    same({o: result.as_numpy(o) for o in shop.outputs}, wanted(run, table))
    assert result.get_response().id == "7"


def test_one_value_for_all_rows(grpc, shop, run):
    table = one_user(20, 10)
    sent = tensors(table, shop.columns)
    for name in ("user", "shown", "shown.length", "tab", "when"):
        sent[name] = (sent[name][0], sent[name][1][:1])
    result = grpc.infer("shop", asked(sent), outputs=[client.InferRequestedOutput("buy")])
    same({"buy": result.as_numpy("buy")}, {"buy": wanted(run, table)["buy"]}, 1e-6)


@pytest.mark.parametrize("change, code, said", [
    (lambda s: s.pop("price"), "INVALID_ARGUMENT", "'price' missing"),
    (lambda s: s.update(price=("FP64", np.array([np.nan, 1.0]))), "INVALID_ARGUMENT", "holds NaN"),
    (lambda s: s.update(price=("FP64", np.zeros(601))), "RESOURCE_EXHAUSTED", "at most 600"),
])
def test_what_cannot_be_is_a_status_and_a_sentence(grpc, shop, change, code, said):
    sent = tensors(rows(2, 3), shop.columns)
    change(sent)
    with pytest.raises(InferenceServerException) as error:
        grpc.infer("shop", asked(sent))
    assert code in error.value.status() and said in error.value.message()


def test_unknown_models_and_tokens(grpc, shop):
    with pytest.raises(InferenceServerException, match="no model 'shpo'"):
        grpc.get_model_metadata("shpo")
    with Running(shop, token="s3cret") as guarded:
        assert guarded.is_server_live()
        with pytest.raises(InferenceServerException, match="a token is needed"):
            guarded.get_model_metadata("shop")
        assert guarded.get_model_metadata("shop", headers={"authorization": "Bearer s3cret"}).name == "shop"


def test_messages_are_those_of_the_published_service():
    def described(descriptor):
        message = descriptor_pb2.DescriptorProto()
        descriptor.CopyToProto(message)
        return {f.number: (f.name, f.type, f.label, f.type_name) for f in message.field}

    for name in FIELDS:
        theirs = service_pb2.DESCRIPTOR.pool.FindMessageTypeByName(f"inference.{name}")
        for number, field in described(MESSAGES[name].DESCRIPTOR).items():
            assert described(theirs)[number] == field, name
