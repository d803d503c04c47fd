"""The sharded classifier: objectives, candidates, class table, row optimisers, and the head itself."""
