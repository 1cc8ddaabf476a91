"""From the typed graph to the steps of a packed model: what becomes thresholds, an epilogue or a step of its own."""
