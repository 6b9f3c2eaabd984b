package devstack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// lockName is a file in every temporary directory, locked with flock for as
// long as the process that made it lives. The kernel gives the lock back
// however that process ends.
const lockName = "devstack.lock"

// TempDir makes a directory for a program's files, and first removes those that
// killed processes have left for the same name. remove removes it.
func TempDir(name string) (dir string, remove func() error, err error) {
	dir, lock, err := makeTempDir(name)
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return errors.Join(os.RemoveAll(dir), lock.Close()) }, nil
}

// makeTempDir makes a directory for a server, and first removes those that
// killed processes have left. The lock is to be closed after the directory has
// been removed.
func makeTempDir(server string) (dir string, lock *os.File, err error) {
	removeAbandoned(filepath.Join(os.TempDir(), "crossfade-"+server+"-*"))
	dir, err = os.MkdirTemp("", "crossfade-"+server+"-")
	if err != nil {
		return "", nil, fmt.Errorf("make a directory for %s: %w (TMPDIR chooses where)", server, err)
	}
	lock, err = lockDir(dir)
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("lock the directory for %s: %w", server, err), os.RemoveAll(dir))
	}
	return dir, lock, nil
}

// lockDir gives the file its name only when it is locked: nobody can find it
// in between and take the directory for an abandoned one.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	lock, err := os.OpenFile(path+".new", os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	if err := os.Rename(path+".new", path); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// removeAbandoned is housekeeping for others: what it cannot remove, because it
// belongs to another user or is in use, it leaves alone and says nothing.
func removeAbandoned(pattern string) {
	dirs, err := filepath.Glob(pattern)
	if err != nil {
		return
	}
	for _, dir := range dirs {
		lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			_ = os.RemoveAll(dir)
		}
		lock.Close()
	}
}
