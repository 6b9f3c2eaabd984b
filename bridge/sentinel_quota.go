package bridge

import (
	"slices"
	"sync"

	"github.com/crossfade-io/crossfade/pipeline"
)

// noncesPerTenant is of how many of a tenant's nonces sentinels are kept by each path.
// A leader has far fewer on their way; but whoever has seen them may send them again.
const noncesPerTenant = 100

// place is what a sentinel that waits takes up: once by each path for each kind, and
// apart from that for each of what it waits for.
type place struct {
	path          pipeline.Path
	tenant, nonce string
	what          string
}

// quota bounds what is kept for each tenant. Genuine nonces increase with the time they
// were made at: where there is no room, the oldest gives way. So sentinels that somebody
// has recorded and sends again keep none out that has been sent since.
type quota struct {
	mu   sync.Mutex
	held map[holder][]*holding // by nonce, the oldest first; none of them empty
}

type holder struct {
	path   pipeline.Path
	tenant string
}

type holding struct {
	nonce string
	what  []string
}

func newQuota() quota { return quota{held: make(map[holder][]*holding)} }

// room is what the quota says of a sentinel.
type room uint8

const (
	roomGiven   room = iota
	roomTaken        // by another copy of it, which serves as well
	roomRefused      // there are many newer ones
)

// take asks for room, which is to be given back.
func (q *quota) take(at place) room {
	q.mu.Lock()
	defer q.mu.Unlock()
	key := holder{at.path, at.tenant}
	list := q.held[key]
	i, found := find(list, at.nonce)
	switch {
	case found && slices.Contains(list[i].what, at.what):
		return roomTaken
	case found:
		list[i].what = append(list[i].what, at.what)
		return roomGiven
	case len(list) >= noncesPerTenant && i == 0:
		return roomRefused
	case len(list) >= noncesPerTenant:
		list = slices.Delete(list, 0, 1)
		i--
	}
	q.held[key] = slices.Insert(list, i, &holding{at.nonce, []string{at.what}})
	return roomGiven
}

// has reports whether a sentinel that was given room still has it.
func (q *quota) has(at place) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	list := q.held[holder{at.path, at.tenant}]
	i, found := find(list, at.nonce)
	return found && slices.Contains(list[i].what, at.what)
}

func (q *quota) giveBack(at place) {
	q.mu.Lock()
	defer q.mu.Unlock()
	key := holder{at.path, at.tenant}
	list := q.held[key]
	i, found := find(list, at.nonce)
	if !found {
		return
	}
	h := list[i]
	if h.what = slices.DeleteFunc(h.what, func(what string) bool { return what == at.what }); len(h.what) > 0 {
		return
	}
	if list = slices.Delete(list, i, i+1); len(list) == 0 {
		delete(q.held, key)
		return
	}
	q.held[key] = list
}

func find(list []*holding, nonce string) (int, bool) {
	return slices.BinarySearchFunc(list, nonce, func(h *holding, nonce string) int {
		switch {
		case h.nonce < nonce:
			return -1
		case h.nonce > nonce:
			return 1
		}
		return 0
	})
}
