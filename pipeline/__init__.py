"""Where the model, the frame codec, the vocoder and the sampler meet, and only here.

pipe = AVPipeline.from_pretrained("runs/demo/export")
clips = pipe.sample([0, 1], frames=16, y=torch.tensor([0, 2]))  # a batch of whole clips
for chunk in pipe.stream(y=2, seed=0): ...                      # frames and their sound, without end
"""

from pipeline.avcodec import AVCodec
from pipeline.avpipeline import AVPipeline, pipeline_of
from pipeline.clips import ClipPipeline, Clips
from pipeline.spec import AVSpec
from pipeline.state import StreamState
from pipeline.streams import Chunk, Streams

__all__ = ["AVCodec", "AVPipeline", "AVSpec", "Chunk", "ClipPipeline", "Clips", "StreamState", "Streams", "pipeline_of"]
