package main

import "testing"

func TestDistrust(tt *testing.T) {
	t := newOperatorTest(tt)
	doubts := `SELECT count(*) FROM crossfade_epoch WHERE timeline = 'doubted by ops: a snapshot'`
	t.want(exitUsage, "distrust --yes", "--reason TEXT")
	t.answer("no\n")
	if code, _, _ := call(t, "distrust", "--reason", "a snapshot", "--by", "ops"); code != exitNo || t.count(doubts) != 0 {
		t.Errorf("the answer was no: exit %d", code)
	}
	t.answer("yes\n")
	if code, out, errs := call(t, "distrust", "--reason", "a snapshot", "--by", "ops"); code != exitDone || t.count(doubts) != 1 {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	t.want(exitDone, "distrust --reason again --yes --output json", `"proved_anew"`, `"tenants"`)
}
