// Package devstack runs the servers that Crossfade talks to, privately and for
// a while: a Mosquitto broker, a NATS server with JetStream and a PostgreSQL.
// The demo, the benchmark and the tests use it, so that they run against the
// real thing and never touch what an operator has installed.
//
//	          this process
//	┌──────────────────────────────┐
//	│ StartMosquitto ──────────────┼──▶ mosquitto          (child process)
//	│ StartPostgres  ──────────────┼──▶ initdb, postgres   (child process, as
//	│                              │                        OS user postgres when root)
//	│ StartNATS      ──────────────┼──▶ itself, re-executed (child process), or
//	│   InProcess: embedded server │    nothing
//	└──────────────────────────────┘
//
// Every server listens on 127.0.0.1 only, on a port that nobody else uses, with
// a random password, and keeps its data and its log in one directory. The port
// and the data stay the same over Stop, Kill and Start, so a client can live
// through a restart. Close ends the server and removes a directory that
// devstack made itself; one that the caller named stays.
//
// Children do not outlive their parent on Linux, not even one that is killed
// with SIGKILL. They have process groups of their own: Ctrl-C at a terminal
// reaches the parent only, which can then drain before it closes its servers.
//
// StartProgram runs a program of ours in the same way, usually this one as
// `crossfade run`, and NewDatabase provides a database for it.
//
// # Use in tests
//
// A package whose tests need servers calls RunChild through Main:
//
//	func TestMain(m *testing.M) { goleak.VerifyTestMain(devstack.Main(m)) }
//
//	func TestSomething(t *testing.T) {
//		url := devstack.TestDatabase(t) // an empty database of the test's own
//	}
//
// A missing program fails the test and says what to install; it does not skip.
package devstack
