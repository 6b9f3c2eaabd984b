// Package route decides which messages go on to which destinations. A tenant's
// routes are rows of message_routes; each names MQTT topics and, if it likes,
// conditions on the payload. [Compile] reads a row once, [Set.Match] then asks many
// messages, and [Route.AppendBody] says what a matching one becomes on routes.>.
//
//	row ── Compile ──▶ Route ─┐
//	row ── Compile ──▶ Route ─┼─ NewSet ─▶ Set ── Match(message) ──▶ the routes that it takes
//	row ── Compile ──▶ error  ┘      (reported; the others work on)
//
// Routes see a message as its device sent it: metrics under the device's own
// names, not under those that a module's key map gives them in the database, and
// without the time that a producer may have added. Both paths' copies of a message
// hence match the same routes and make the same bodies.
//
// # Topic filters
//
// As in MQTT 5, section 4.7: + stands for one level, # for any number at the end,
// the parent's own included (a/# takes a). They are compared with the device's
// whole topic, tenant/{tenant}/device/{device}/{msg_type}.
//
// # Payload filters
//
// A JSON object of names and conditions, all of which must hold. NULL, null and {}
// hold for every message. A name is looked up in metrics, and where it is not there
// in the payload; one that is in neither fails its condition.
//
//	{"temp": {"$gt": 80, "$lte": 100}}   a number in that range
//	{"mode": "eco", "floor": 3}          equal as text
//
// The operators $gt $gte $lt $lte $eq $ne compare numbers, as doubles. A value
// that is no number satisfies none of them, not even $ne.
//
// For a plain value the text of a string is its content, of anything else its
// canonical JSON (RFC 8785): "22.5" equals 22.5 and 22.50, "true" equals true,
// "null" equals null. But "22.50" is not 22.5: a string stays as it was written.
package route
