// Package pipeline holds what every part of the pipeline speaks of: a copy of a
// message as a source delivered it ([Delivery]), the message read from it
// ([Message]), its identity ([ID]) and what becomes of it ([Reason]). It knows no
// transport and no stage.
//
// The work is in the packages below: canonical (JSON in RFC 8785's form), check
// (the checks, one file each), store (ledger, rows, quarantine, registry: all the
// SQL) and process (batches from decoding to acknowledgement).
//
//	Delivery ──Decode──► Message ──check.First──► Reason ──store.Commit──► ledger + rows | quarantine ──► Receipt.Ack
package pipeline
