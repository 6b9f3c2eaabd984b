package bench

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// procTick is the unit of CPU times in /proc (USER_HZ, 100 on every Linux that Go
// runs on; proc(5)).
const procTick = 10 * time.Millisecond

// cpuOf returns the CPU time that the processes have used, the second one's
// (PostgreSQL's) with all its children's, those that are gone included. It is zero
// for a PID of 0, and for all where the system has no /proc.
func cpuOf(pids [3]int) (cpu [3]time.Duration, err error) {
	if runtime.GOOS != "linux" {
		return cpu, nil
	}
	for i, pid := range pids {
		if pid == 0 {
			continue
		}
		stat, err := readProcStat(pid)
		if err != nil {
			return cpu, err
		}
		cpu[i] = stat.own
		if i == 1 {
			children, err := childrenCPU(pid)
			if err != nil {
				return cpu, err
			}
			cpu[i] += stat.reaped + children
		}
	}
	return cpu, nil
}

// childrenCPU sums the CPU times of a process's living children.
func childrenCPU(parent int) (time.Duration, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if stat, err := readProcStat(pid); err == nil && stat.parent == parent { // others may end meanwhile
			sum += stat.own + stat.reaped
		}
	}
	return sum, nil
}

type procStat struct {
	parent      int
	own, reaped time.Duration // user and system; reaped: of children waited for
}

func readProcStat(pid int) (procStat, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseProcStat(string(text))
}

// parseProcStat reads /proc/PID/stat (proc(5)): the command's name, in parentheses,
// may hold anything, so fields are counted from behind it.
func parseProcStat(text string) (procStat, error) {
	bad := fmt.Errorf("cannot read /proc/PID/stat: %q", text)
	_, rest, ok := cutLast(text, ")")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 15 {
		return procStat{}, bad
	}
	var n [5]int64
	for i, at := range [...]int{1, 11, 12, 13, 14} { // ppid, utime, stime, cutime, cstime
		v, err := strconv.ParseInt(fields[at], 10, 64)
		if err != nil {
			return procStat{}, bad
		}
		n[i] = v
	}
	return procStat{parent: int(n[0]), own: time.Duration(n[1]+n[2]) * procTick, reaped: time.Duration(n[3]+n[4]) * procTick}, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// peakMemory is the most memory that the process has had resident, in bytes; 0
// where the system has no /proc. It is not taken from wait4, whose maximum begins
// with what the parent had resident when it forked.
func peakMemory(pid int) (int64, error) {
	if runtime.GOOS != "linux" {
		return 0, nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("/proc/%d/status has no VmHWM", pid)
}
