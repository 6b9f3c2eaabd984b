package devstack

import (
	"os/exec"
	"syscall"
)

// tieToParent gives the child a process group of its own, out of reach of the
// terminal's Ctrl-C, and has the kernel send it sig when this process dies.
// (A child that changes its user afterwards loses that signal: servers must
// therefore be started as the user they shall run as.)
func tieToParent(cmd *exec.Cmd, sig syscall.Signal) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = sig
}

// selfExecutable is this program's own file. The link keeps pointing at the
// running program when a build has replaced the file meanwhile.
func selfExecutable() (string, error) { return "/proc/self/exe", nil }

// removeSharedMemory removes the System V segment that a killed PostgreSQL
// leaves behind; the next start would reuse it, but there is none after Close.
// It reports nothing because a segment that is already gone is what we want.
func removeSharedMemory(id int) {
	const ipcRmid = 0
	_, _, _ = syscall.Syscall(syscall.SYS_SHMCTL, uintptr(id), ipcRmid, 0)
}
