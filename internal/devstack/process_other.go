//go:build !linux

package devstack

import (
	"os"
	"os/exec"
	"syscall"
)

// tieToParent gives the child a process group of its own. Outside Linux there
// is no signal on the parent's death: a parent that is killed with SIGKILL
// leaves its Mosquitto and PostgreSQL running.
func tieToParent(cmd *exec.Cmd, _ syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
}

func selfExecutable() (string, error) { return os.Executable() }

func removeSharedMemory(int) {}
