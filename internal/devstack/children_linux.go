package devstack

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// childrenOf lists the PIDs of a process's children; none when it is gone or
// the kernel does not tell (CONFIG_PROC_CHILDREN).
func childrenOf(pid int) []int {
	if pid == 0 {
		return nil
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	var pids []int
	for _, field := range strings.Fields(string(text)) {
		if child, err := strconv.Atoi(field); err == nil {
			pids = append(pids, child)
		}
	}
	return pids
}
