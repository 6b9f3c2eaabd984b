package main

import (
	"os/exec"
	"syscall"
)

// dieWithParent keeps an instance from outliving a benchmark that was killed, and
// the terminal's Ctrl-C from reaching it before the benchmark stops it in order.
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
