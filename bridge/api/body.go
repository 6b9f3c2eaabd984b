package api

import (
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// member is one member of a request's body.
type member struct {
	value canonical.Value
	raw   json.RawMessage // as it was written: numbers keep all their digits
}

// storable returns the member as jsonb takes it.
func (m member) storable() (string, bool) {
	_, ok := m.value.AppendStorable(nil)
	m.value.EachNumber(func(literal string) { ok = ok && writable(literal) })
	return string(m.raw), ok
}

// maxExponent is the largest exponent of a number, either way: a double needs 324, and
// PostgreSQL writes a number with all its zeros.
const maxExponent = 400

// writable reports whether PostgreSQL can write a number out without making much of
// little: jsonb keeps 1e-16383 as it is, at 16 KB each, and there are thousands of them
// in a body of 64 KiB.
func writable(literal string) bool {
	mantissa, exponent := literal, ""
	if i := strings.IndexAny(literal, "eE"); i >= 0 {
		mantissa, exponent = literal[:i], literal[i+1:]
	}
	if digits := strings.TrimLeft(exponent, "+-0"); len(digits) > 3 || len(digits) == 3 && digits > strconv.Itoa(maxExponent) {
		return false
	}
	f, err := strconv.ParseFloat(literal, 64)
	return err == nil && (f != 0 || !strings.ContainsAny(mantissa, "123456789"))
}

// wrong answers a body that is JSON and not what it should be.
func wrong(member, detail string, args ...any) error {
	message := fmt.Sprintf(detail, args...)
	return huma.NewError(http.StatusUnprocessableEntity, "the body is not as it should be: "+member+" "+message,
		&huma.ErrorDetail{Location: "body." + member, Message: message})
}

// readBody takes a JSON object apart. It is stricter than encoding/json: names are
// case-sensitive, duplicates and names that are not known are refused (any name will
// do where none is known), and so are invalid UTF-8 and deep nesting.
func readBody(raw []byte, known ...string) (map[string]member, error) {
	var doc canonical.Doc
	if err := doc.Parse(raw); err != nil {
		return nil, problem(http.StatusBadRequest, "the body is not JSON: %v", err)
	}
	root := doc.Root()
	switch {
	case root.Kind() != canonical.KindObject:
		return nil, problem(http.StatusUnprocessableEntity, "the body is not a JSON object")
	case root.DeeperThan(maxDepth):
		return nil, problem(http.StatusUnprocessableEntity, "the body is nested more than %d levels deep", maxDepth)
	}
	var raws map[string]json.RawMessage // a map's names are not matched without regard to case
	if err := json.Unmarshal(raw, &raws); err != nil {
		return nil, problem(http.StatusBadRequest, "the body is not JSON")
	}
	members := make(map[string]member, len(raws))
	var bad error
	root.Each(func(name string, v canonical.Value) {
		_, twice := members[name]
		switch {
		case bad != nil:
		case len(known) > 0 && !slices.Contains(known, name):
			bad = problem(http.StatusUnprocessableEntity, "the body has a member that is not known here; known are %s", strings.Join(known, ", "))
		case twice:
			bad = problem(http.StatusUnprocessableEntity, "the body has a member twice")
		}
		members[name] = member{v, raws[name]}
	})
	if bad != nil {
		return nil, bad
	}
	return members, nil
}

// object returns a member that must be a JSON object which jsonb can hold; "{}" for
// one that is absent or null.
func object(members map[string]member, name string) (string, error) {
	m := members[name]
	if m.value.IsNull() {
		return "{}", nil
	}
	if m.value.Kind() != canonical.KindObject {
		return "", wrong(name, "must be an object")
	}
	s, ok := m.storable()
	if !ok {
		return "", wrong(name, `holds what the database cannot keep: \u0000, half a surrogate pair, or a number out of range`)
	}
	return s, nil
}

// text returns a member that must be text of up to limit bytes without control
// characters; "" for one that is absent or null.
func text(members map[string]member, name string, limit int) (string, error) {
	m := members[name]
	if m.value.IsNull() {
		return "", nil
	}
	s, ok := m.value.Text()
	if _, storable := m.storable(); !ok || !storable || len(s) > limit || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return "", wrong(name, "must be text of at most %d bytes, without control characters", limit)
	}
	return strings.Clone(s), nil
}

// isJSON reports whether a Content-Type is JSON, or not given.
func isJSON(contentType string) bool {
	if contentType == "" {
		return true
	}
	media, _, err := mime.ParseMediaType(contentType)
	return err == nil && (media == "application/json" || strings.HasPrefix(media, "application/") && strings.HasSuffix(media, "+json"))
}
