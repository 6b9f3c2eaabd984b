// Package process takes deliveries through the pipeline in batches: decode, check,
// commit, acknowledge. It is where promise P1 is kept on our side: a receipt is
// acknowledged only after [store.Store.Commit] returned nil for the batch that
// held it (or an earlier one, for a copy of the same message).
//
//	Submit ─► queue ─► worker: decode ─► recent? ─► check ─► registry ─► commit ─► recent, Committed, Ack
//	                      └ × Workers                 (one query a batch)  └ retried until PostgreSQL is back,
//	                                                                         split until a poison row stands alone
//
// Submit never blocks: how much is in hand is bounded by the sources, which stop
// asking their brokers for more until what they delivered is settled.
package process
