"""`mpsoftmax evaluate`: a trained model, the files of a protocol and the figures of `mpsoftmax.evaluate`."""
