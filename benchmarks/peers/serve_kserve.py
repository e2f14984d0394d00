"""The KServe SDK serving model.onnx: python serve_kserve.py FOLDER PORT, where kserve and onnxruntime are installed."""

import sys
from pathlib import Path

import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Graph(Model):

    def __init__(self, folder: Path):
        super().__init__("bench")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        self.ready = True

    def predict(self, payload: InferRequest, headers=None, response_headers=None) -> InferResponse:
        found = self.session.run(None, {i.name: i.as_numpy() for i in payload.inputs})
        outputs = []
        for one, values in zip(self.session.get_outputs(), found):
            outputs.append(InferOutput(one.name, list(values.shape), "FP32"))
            outputs[-1].set_data_from_numpy(values, binary_data=True)
        return InferResponse(payload.id or "", self.name, outputs)


if __name__ == "__main__":
    ModelServer(http_port=int(sys.argv[2]), enable_grpc=False, workers=1).start([Graph(Path(sys.argv[1]))])
