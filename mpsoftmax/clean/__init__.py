"""Label errors, near-duplicates, split identities: found, reviewed, applied: `mpsoftmax clean`."""
