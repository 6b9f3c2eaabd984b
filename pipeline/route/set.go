package route

import (
	"slices"
	"strings"
	"sync"

	"github.com/crossfade-io/crossfade/pipeline"
	"github.com/crossfade-io/crossfade/pipeline/canonical"
)

// Set is a tenant's published routes. A tenant may have thousands, and all tenants
// share the workers that ask them of every message: so one walk down the topic finds
// the routes that take it, and one over the payload what their filters look up. It
// may be asked from several goroutines, of different messages.
type Set struct {
	routes  []*Route
	topics  level
	names   map[string]int32 // numbers what payload filters look up
	numbers [][]int32        // of each route's conditions
	scratch sync.Pool        // of *scratch
}

type scratch struct {
	found  []int32
	values []value // by number
}

// NewSet returns the published ones of a tenant's routes, and nil if there is none.
func NewSet(routes []*Route) *Set {
	s := &Set{names: make(map[string]int32)}
	for _, r := range routes {
		if !r.Published() {
			continue
		}
		s.topics.add(r.topicFilter, int32(len(s.routes)))
		numbers := make([]int32, len(r.payload))
		for i, c := range r.payload {
			n, ok := s.names[c.name]
			if !ok {
				n = int32(len(s.names))
				s.names[c.name] = n
			}
			numbers[i] = n
		}
		s.routes, s.numbers = append(s.routes, r), append(s.numbers, numbers)
	}
	if len(s.routes) == 0 {
		return nil
	}
	s.scratch.New = func() any { return &scratch{values: make([]value, len(s.names))} }
	return s
}

// Match appends the published routes that the message takes, in the order in which
// NewSet was given them. A nil Set has none.
func (s *Set) Match(dst []*Route, m *pipeline.Message) []*Route {
	if s == nil {
		return dst
	}
	work := s.scratch.Get().(*scratch)
	defer s.scratch.Put(work)
	work.found = s.topics.root(work.found[:0], m.RawTopic)
	slices.Sort(work.found)
	looked := false
	for _, i := range work.found {
		r := s.routes[i]
		if len(r.payload) > 0 && !looked {
			s.look(work, m)
			looked = true
		}
		if r.payload.hold(work.values, s.numbers[i]) {
			dst = append(dst, r)
		}
	}
	if looked {
		clear(work.values) // they hold on to the message
	}
	return dst
}

// fewNames is up to how many names it costs less to look each up by itself than to
// look every member's up among them.
const fewNames = 4

// look sets the values of all names.
func (s *Set) look(work *scratch, m *pipeline.Message) {
	if len(s.names) <= fewNames {
		for name, n := range s.names {
			work.values[n] = valued(member(m, name))
		}
		return
	}
	note := func(name string, v canonical.Value) {
		if n, ok := s.names[name]; ok {
			work.values[n] = valued(v)
		}
	}
	m.EachMember(note)
	m.Fields.Metrics.Each(note) // which come first, that is: have the last word
}

// member is what a name in a payload filter stands for.
func member(m *pipeline.Message, name string) canonical.Value {
	if v := m.Fields.Metrics.Get(name); v.Kind() != canonical.KindNone {
		return v
	}
	return m.Member(name)
}

// maxLevels is how deep filters are sorted in: memory for each level of a filter is
// for those that devices' topics have.
const maxLevels = 8

// level is a place in the tree of topic filters.
type level struct {
	next map[string]*level // by the name of the next level
	plus *level
	here []int32 // routes whose filters end here
	all  []int32 // routes whose filters go on with #
	deep []deep
}

// deep is a route whose filter goes on for more than maxLevels.
type deep struct {
	rest  string
	route int32
}

func (l *level) add(filter string, route int32) {
	for depth, more := 0, true; more; depth++ {
		if depth == maxLevels {
			l.deep = append(l.deep, deep{filter, route})
			return
		}
		var name string
		name, filter, more = strings.Cut(filter, "/")
		switch name {
		case "#":
			l.all = append(l.all, route)
			return
		case "+":
			if l.plus == nil {
				l.plus = new(level)
			}
			l = l.plus
		default:
			if l.next == nil {
				l.next = make(map[string]*level)
			}
			if l.next[name] == nil {
				l.next[name] = new(level)
			}
			l = l.next[name]
		}
	}
	l.here = append(l.here, route)
}

// root appends the routes that take the topic. As section 4.7.2 has it, wildcards at
// the beginning do not take what begins with $.
func (l *level) root(found []int32, topic string) []int32 {
	if !strings.HasPrefix(topic, "$") {
		return l.find(found, topic, true)
	}
	name, rest, more := strings.Cut(topic, "/")
	if n := l.next[name]; n != nil {
		return n.find(found, rest, more)
	}
	return found
}

// find appends the routes below l that take the rest of a topic, if there is more of
// it. It meets a route once: filters are sorted in at one place.
func (l *level) find(found []int32, topic string, more bool) []int32 {
	found = append(found, l.all...)
	if !more {
		found = append(found, l.here...)
		for _, d := range l.deep {
			if d.rest == "#" { // which takes the parent as well
				found = append(found, d.route)
			}
		}
		return found
	}
	for _, d := range l.deep {
		if matchLevels(d.rest, topic) {
			found = append(found, d.route)
		}
	}
	name, rest, more := strings.Cut(topic, "/")
	if n := l.next[name]; n != nil {
		found = n.find(found, rest, more)
	}
	if l.plus != nil {
		found = l.plus.find(found, rest, more)
	}
	return found
}
