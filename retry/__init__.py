"""Retrying, giving up and backing off; knows nothing of chat and imports nothing of ours.

policy    run something again after a failure: full jitter, attempts, a deadline (tenacity)
breaker   one circuit breaker for one outbound writer, outcomes reported explicitly (pybreaker)
budget    retries may be at most a share of all attempts over a sliding window
"""
