"""Whether this machine, these ranks and this configuration go together: the command `mpsoftmax doctor`.

One page that can be pasted into an issue: no secrets, no host names. A line is a finding; one that needs a
look says what to do about it.
"""
