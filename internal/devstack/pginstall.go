package devstack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sort"
	"strconv"
	"syscall"
)

// pgInstall is where PostgreSQL's programs are and as whom they run.
type pgInstall struct {
	bin string
	uid int // -1: as the user of this process
	gid int
}

const pgMissing = "PostgreSQL's server programs (initdb, postgres) are not installed: " +
	"install them with `make deps` or `apt-get install postgresql`, name their directory in CROSSFADE_PG_BIN, " +
	"or set DATABASE_URL to a PostgreSQL where databases may be created"

func findPostgres() (pgInstall, error) {
	bin, err := findPostgresBin()
	if err != nil {
		return pgInstall{}, err
	}
	install := pgInstall{bin: bin, uid: -1, gid: -1}
	if os.Geteuid() != 0 {
		return install, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.Atoi(u.Uid)
		gid, gidErr := strconv.Atoi(u.Gid)
		if err := errors.Join(uidErr, gidErr); err != nil {
			return pgInstall{}, fmt.Errorf("user %s: %w", name, err)
		}
		install.uid, install.gid = uid, gid
		return install, nil
	}
	return pgInstall{}, errors.New("PostgreSQL refuses to run as root and there is no OS user postgres: create one with `useradd --system postgres`, or do not run as root")
}

func findPostgresBin() (string, error) {
	if dir := os.Getenv("CROSSFADE_PG_BIN"); dir != "" {
		if !hasPostgres(dir) {
			return "", fmt.Errorf("CROSSFADE_PG_BIN=%s: initdb and postgres are not there; correct it or unset it", dir)
		}
		return dir, nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil && hasPostgres(filepath.Dir(real)) {
			return filepath.Dir(real), nil
		}
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	if err != nil {
		return "", err
	}
	version := func(dir string) int {
		v, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
		if err != nil {
			return 0 // "9.6" and the like: older than all that count
		}
		return v
	}
	sort.Slice(found, func(i, j int) bool { return version(found[i]) > version(found[j]) })
	for _, dir := range found {
		if hasPostgres(dir) {
			return dir, nil
		}
	}
	return "", errors.New(pgMissing)
}

func hasPostgres(dir string) bool {
	for _, program := range []string{"initdb", "postgres"} {
		if _, err := exec.LookPath(filepath.Join(dir, program)); err != nil {
			return false
		}
	}
	return true
}

func (i pgInstall) program(name string) string { return filepath.Join(i.bin, name) }

// asServerUser makes cmd run as the server's user, with an environment of its
// own: PG* variables that are meant for this process would misguide it.
func (i pgInstall) asServerUser(cmd *exec.Cmd, dir string) {
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "LC_ALL=C.UTF-8", "TZ=UTC"}
	if i.uid >= 0 {
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(i.uid), Gid: uint32(i.gid)}
	}
}

// initCluster runs initdb into data, a directory below dir.
func (i pgInstall) initCluster(ctx context.Context, dir, data, password string) error {
	if err := i.giveDirectory(dir); err != nil {
		return err
	}
	passwordFile := filepath.Join(dir, "initial-password")
	if err := os.WriteFile(passwordFile, []byte(password+"\n"), 0o600); err != nil {
		return fmt.Errorf("write PostgreSQL's password: %w", err)
	}
	defer os.Remove(passwordFile)
	if i.uid >= 0 {
		if err := os.Chown(passwordFile, i.uid, i.gid); err != nil {
			return fmt.Errorf("give PostgreSQL its password: %w", err)
		}
	}
	cmd := exec.CommandContext(ctx, i.program("initdb"), "-D", data, "-U", pgSuperuser, "--pwfile", passwordFile,
		"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")
	i.asServerUser(cmd, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("initdb in %s: %w: %s", data, err, bytes.TrimSpace(out))
	}
	return nil
}

// giveDirectory makes dir the server user's own, and says which directory
// above it keeps that user out, rather than leaving a bare "permission denied".
func (i pgInstall) giveDirectory(dir string) error {
	if i.uid < 0 {
		return nil
	}
	if err := os.Chown(dir, i.uid, i.gid); err != nil {
		return fmt.Errorf("give %s to PostgreSQL's user: %w", dir, err)
	}
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		info, err := os.Stat(parent)
		if err != nil {
			return fmt.Errorf("look at %s: %w", parent, err)
		}
		owner, _ := info.Sys().(*syscall.Stat_t)
		owned := owner != nil && int(owner.Uid) == i.uid
		if !owned && info.Mode().Perm()&0o001 == 0 {
			return fmt.Errorf("PostgreSQL runs as another user, to whom %s is closed: run `chmod o+x %s`, or choose another place with TMPDIR", parent, parent)
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}
