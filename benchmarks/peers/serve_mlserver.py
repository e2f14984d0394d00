"""MLServer serving model.onnx: python serve_mlserver.py FOLDER PORT, where mlserver and onnxruntime are installed."""

import asyncio
import sys
from pathlib import Path

import onnxruntime
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

FOLDER, PORT = Path(sys.argv[1]), int(sys.argv[2])


class Graph(MLModel):

    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(FOLDER / "model.onnx", options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        found = self.session.run(None, {i.name: NumpyCodec.decode_input(i) for i in payload.inputs})
        outputs = [NumpyCodec.encode_output(one.name, values)
                   for one, values in zip(self.session.get_outputs(), found)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main() -> None:
    server = MLServer(Settings(host="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_port=PORT + 2,
                               parallel_workers=0, debug=False))
    await server.start([ModelSettings(name="bench", implementation=Graph)])


if __name__ == "__main__":
    asyncio.run(main())
