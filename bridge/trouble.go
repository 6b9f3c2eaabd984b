package bridge

import "sync/atomic"

// trouble is the error that lasts, or nil.
type trouble struct{ atomic.Pointer[error] }

func (t *trouble) err() error {
	if e := t.Load(); e != nil {
		return *e
	}
	return nil
}

// signal leaves a token, unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
