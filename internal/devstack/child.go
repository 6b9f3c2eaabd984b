package devstack

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
)

const (
	childVariable = "CROSSFADE_DEVSTACK_CHILD"
	childNATS     = "nats"
	childReady    = "crossfade-devstack ready\n"
)

// runChildCalled guards against a program that starts itself as a server and
// does not recognise it: the child would run the whole program again, and its
// child too, without end.
var runChildCalled atomic.Bool

// RunChild must be the first thing that main and TestMain do (tests: see Main).
// If this process was started by devstack to be a server, RunChild serves
// until it is told to stop or the parent is gone, and exits. Otherwise it
// returns at once.
func RunChild() {
	runChildCalled.Store(true)
	switch kind := os.Getenv(childVariable); kind {
	case "":
		return
	case childNATS:
		os.Exit(runNATSChild(os.Stdin, os.Stdout, os.Stderr))
	default:
		fmt.Fprintf(os.Stderr, "%s=%s: unknown kind of server, unset the variable\n", childVariable, kind)
		os.Exit(2)
	}
}

// runNATSChild returns the exit code: 0 after SIGTERM, 1 when the server did
// not start, 3 when the parent went away.
func runNATSChild(in io.Reader, out, diagnostics io.Writer) int {
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	parentGone := make(chan struct{})

	var config natsConfig
	decoder := json.NewDecoder(in)
	if err := decoder.Decode(&config); err != nil {
		fmt.Fprintln(diagnostics, "read the configuration from standard input:", err)
		return 1
	}
	s, err := config.serve()
	if err != nil {
		fmt.Fprintln(diagnostics, err)
		return 1
	}
	if _, err := io.WriteString(out, childReady); err != nil {
		fmt.Fprintln(diagnostics, "report to the parent:", err)
		return 1
	}
	go func() {
		// The parent holds the other end open and writes no more: the read
		// ends, in whatever way, when the parent does.
		_, _ = io.Copy(io.Discard, in)
		close(parentGone)
	}()
	select {
	case <-terminate:
		s.Shutdown()
		s.WaitForShutdown()
		return 0
	case <-parentGone:
		return 3
	}
}
