// Package store is the pipeline's PostgreSQL: the ledger of message IDs, the rows
// that messages leave behind, quarantine, and what the registry knows of devices.
//
// [Store.Commit] is where promises P1 and P2 are kept: one transaction inserts the
// batch's IDs into the ledger, in ID order, and writes the effects of exactly
// those that were not there yet. A copy may be acknowledged once Commit returned
// nil, and not before. Who loses the race for an ID waits for the winner's
// transaction and then knows that it lost.
//
//	BEGIN
//	  lock and look up anonymous messages       (only when the batch has some)
//	  INSERT INTO crossfade_ledger … ON CONFLICT DO NOTHING RETURNING message_id
//	  COPY telemetry                            (written telemetry)
//	  upsert device_state                       (locks the devices, shadow reports' too)
//	  update and insert device_sensors
//	  update device_registry                    (location)
//	  upsert device_state, update device_commands  (shadow reports, acks)
//	  INSERT crossfade_downlink                 (the answers to acks)
//	  INSERT quarantine_events, count them      (quarantined)
//	  NOTIFY telemetry_inserted
//	COMMIT
//
// The order of locks is the same in every transaction (anonymous stripes, ledger
// IDs, devices, commands, counters, each sorted), so that two of them cannot
// deadlock. A device is locked by its row in device_state, all devices of a batch
// by one statement; its sensors and its registry entry are written under that
// lock, in whatever order. It is also what makes counting a device's sensors and
// then adding to them safe among instances. Devices come after the COPY, which
// locks nothing that others want, so that they are held for a short time.
package store
