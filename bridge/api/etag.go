package api

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// etag is the entity tag of a version of the desired state.
func etag(version int64) string { return `"` + strconv.FormatInt(version, 10) + `"` }

// tags are what If-Match and If-None-Match name (RFC 9110, section 8.8.3).
type tags struct {
	given bool // the field is there
	any   bool // *
	// strong and weak are those that name a version of ours; all others match nothing.
	strong, weak []int64
}

var errTags = errors.New(`it must be * or entity tags in quotes, as "7"`)

// parseTags reads the field's value; empty is none.
func parseTags(s string) (t tags, err error) {
	s = strings.Trim(s, " \t")
	switch s {
	case "":
		return t, nil
	case "*":
		return tags{given: true, any: true}, nil
	}
	t.given = true
	found := false
	for s != "" {
		if s[0] == ',' || s[0] == ' ' || s[0] == '\t' { // lists may have empty elements
			s = s[1:]
			continue
		}
		weak := strings.HasPrefix(s, "W/")
		s = strings.TrimPrefix(s, "W/")
		if s == "" || s[0] != '"' {
			return tags{}, errTags
		}
		tag, rest, closed := strings.Cut(s[1:], `"`)
		rest = strings.TrimLeft(rest, " \t")
		if !closed || strings.ContainsFunc(tag, notInTag) || rest != "" && rest[0] != ',' {
			return tags{}, errTags
		}
		found, s = true, rest
		if v, err := strconv.ParseInt(tag, 10, 64); err == nil && strconv.FormatInt(v, 10) == tag {
			if weak {
				t.weak = append(t.weak, v)
			} else {
				t.strong = append(t.strong, v)
			}
		}
	}
	if !found {
		return tags{}, errTags
	}
	return t, nil
}

// notInTag: entity tags hold visible characters, beyond ASCII whatever bytes.
func notInTag(r rune) bool { return r <= ' ' || r == 0x7f }

// ifMatch reads If-Match: nil for no condition, else the versions that will do. Weak
// tags never match (RFC 9110, section 13.1.1).
func ifMatch(s string) ([]int64, error) {
	t, err := parseTags(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf("If-Match: %w", err)
	case !t.given || t.any: // a registered device always has a desired state, be it empty
		return nil, nil
	}
	return append([]int64{}, t.strong...), nil
}

// noneMatch reports whether If-None-Match names the version, so that the client has
// it already. A field that cannot be read is no reason to keep it from the client.
func noneMatch(s string, version int64) bool {
	t, err := parseTags(s)
	if err != nil {
		return false
	}
	if t.any {
		return true
	}
	for _, v := range append(t.strong, t.weak...) {
		if v == version {
			return true
		}
	}
	return false
}
