package ingest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// errTooMany: a batch has more messages than it may.
var errTooMany = errors.New("too many messages")

const memberMessages = "messages"

// readBatch takes a batch apart into up to limit messages, which are not looked into.
// It costs memory for those, however many more there are. Names are case-sensitive.
func readBatch(raw []byte, limit int) (items []json.RawMessage, err error) {
	if !json.Valid(raw) {
		return nil, errors.New("it is not JSON")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not a JSON object")
	}
	for dec.More() {
		switch name, err := dec.Token(); {
		case err != nil:
			return nil, errors.New("it is not JSON")
		case name != memberMessages:
			return nil, errors.New("it has a member that is not known here; known is " + memberMessages)
		case items != nil:
			return nil, errors.New("it has " + memberMessages + " twice")
		}
		if items, err = readList(dec, limit); err != nil {
			return nil, err
		}
	}
	if len(items) == 0 {
		return nil, errors.New(memberMessages + " is missing or empty")
	}
	return items, nil
}

// readList reads a list, which is not nil afterwards.
func readList(dec *json.Decoder, limit int) ([]json.RawMessage, error) {
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return nil, errors.New(memberMessages + " is no list")
	}
	items := []json.RawMessage{}
	for dec.More() {
		if len(items) == limit {
			return nil, errTooMany
		}
		var one json.RawMessage
		if err := dec.Decode(&one); err != nil {
			return nil, fmt.Errorf("%s[%d] cannot be read", memberMessages, len(items))
		}
		items = append(items, one)
	}
	if _, err := dec.Token(); err != nil && err != io.EOF {
		return nil, errors.New("it is not JSON")
	}
	return items, nil
}

// item is a BatchItem as it is read. It lives until the next is read.
type item struct {
	tenant, device, msgType, token string
	payload                        json.RawMessage
}

// itemReader reads one message after the other in the same memory.
type itemReader struct{ item, payload canonical.Doc }

// read is as strict as bodies of single requests are: no member that is not known or
// comes twice, no invalid UTF-8. Its error is the answer.
func (r *itemReader) read(raw json.RawMessage) (it item, err error) {
	if err := r.item.Parse(raw); err != nil {
		return it, wrong("", err.Error())
	}
	root := r.item.Root()
	if root.Kind() != canonical.KindObject {
		return it, wrong("", "it is not a JSON object")
	}
	into := [...]struct {
		name string
		text *string // nil: the payload
		seen bool
	}{{"tenant_id", &it.tenant, false}, {"device_id", &it.device, false}, {"msg_type", &it.msgType, false}, {memberToken, &it.token, false}, {"payload", nil, false}}
	root.Each(func(name string, v canonical.Value) {
		for i := range into {
			m := &into[i]
			if m.name != name || err != nil {
				continue
			}
			text, isText := v.Text()
			switch {
			case m.seen:
				err = wrong(name, "is there twice")
			case m.text == nil:
			case isText && utf8.ValidString(text):
				*m.text = strings.Clone(text) // the document's memory is used again
			case !v.IsNull() || name != memberToken:
				err = wrong(name, "must be text")
			}
			m.seen = true
			return
		}
		if err == nil {
			err = huma.Error422UnprocessableEntity("this is no message: it has a member that is not known here; known are tenant_id, device_id, msg_type, provision_token and payload")
		}
	})
	if err != nil {
		return it, err
	}
	if !into[len(into)-1].seen {
		return it, wrong("payload", "is missing")
	}
	// Every name is there once, and known: none can be taken for another by its case.
	var members struct{ Payload json.RawMessage }
	if err := json.Unmarshal(raw, &members); err != nil {
		return it, wrong("", "it cannot be read")
	}
	it.payload = members.Payload
	return it, nil
}
