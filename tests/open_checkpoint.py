"""Open a checkpoint by transformers alone: `python tests/open_checkpoint.py FOLDER` prints the version and
ends with an error where the audio embeddings
are not tied or the loss of random codes is not finite. Run by `.ci/long` with older versions"""
import sys

import torch, transformers

model = transformers.CsmForConditionalGeneration.from_pretrained(sys.argv[1]).eval()
audio = model.backbone_model.embed_tokens.embed_audio_tokens.weight
depth = model.depth_decoder.model.embed_tokens.weight
if audio.data_ptr() != depth.data_ptr():
    sys.exit(f'transformers {transformers.__version__}: the audio embeddings are not tied')
codes = torch.randint(0, 2048, (1, 5, model.config.num_codebooks), generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    embeddings = model.backbone_model.embed_tokens(codes)
    loss = model(inputs_embeds=embeddings, labels=codes, use_cache=False).loss
if not torch.isfinite(loss):
    sys.exit(f'transformers {transformers.__version__}: the loss is {loss}')
print(f'transformers {transformers.__version__}: tied, loss {float(loss):.4f}')
