package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Postgres is a private PostgreSQL in a child process. Its methods may be
// called concurrently.
type Postgres struct {
	d        daemon
	install  pgInstall
	options  PostgresOptions
	password string
}

// PostgresOptions says how a PostgreSQL is started; the zero value is good for
// tests.
type PostgresOptions struct {
	// Dir holds the cluster and the log. Empty: a new temporary directory,
	// which Close removes. A named directory must be reachable for the OS user
	// postgres when this process runs as root, and must not hold a cluster yet.
	Dir string
	// Port of 127.0.0.1. 0: a free one.
	Port int
	// Fsync makes commits survive a crash of the machine. Without it they
	// survive Kill all the same, since the kernel holds what was written.
	Fsync bool
	// MaxConnections is at least 10. 0: 100.
	MaxConnections int
}

// Validate names the field that cannot be used.
func (o PostgresOptions) Validate() error {
	if o.MaxConnections != 0 && o.MaxConnections < 10 {
		return fmt.Errorf("PostgresOptions.MaxConnections is %d: use at least 10, or 0 for the default of 100", o.MaxConnections)
	}
	return nil
}

const pgSuperuser = "postgres"

// StartPostgres creates a new cluster, starts a server on it and returns when
// it accepts connections. ctx bounds the start only; the server runs until
// Close, or until this process ends. PostgreSQL refuses to run as root: a root
// process starts it as the OS user postgres. CROSSFADE_PG_BIN names the
// directory of the programs; without it PATH and Debian's directories are
// searched and the newest version is taken.
func StartPostgres(ctx context.Context, o PostgresOptions) (*Postgres, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.MaxConnections == 0 {
		o.MaxConnections = 100
	}
	install, err := findPostgres()
	if err != nil {
		return nil, err
	}
	dir, own, err := serverDir("postgres", o.Dir)
	if err != nil {
		return nil, err
	}
	p := &Postgres{install: install, options: o, password: randomSecret()}
	p.d = daemon{name: "postgres", dir: dir, ownDir: own, stopSignal: syscall.SIGINT, launch: p.launch}
	initCtx, cancel := withLimit(ctx, startLimit)
	defer cancel()
	if err := install.initCluster(initCtx, dir, p.dataDir(), p.password); err != nil {
		return nil, errors.Join(err, p.d.removeDir())
	}
	if err := p.d.startFirst(ctx, o.Port); err != nil {
		return nil, err
	}
	return p, nil
}

// URL connects to the database as superuser, over TCP, with the password.
func (p *Postgres) URL(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(pgSuperuser, p.password),
		Host:     p.address(),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

func (p *Postgres) address() string { return "127.0.0.1:" + strconv.Itoa(p.d.port) }

// CreateDatabase creates an empty database and returns its URL.
func (p *Postgres) CreateDatabase(ctx context.Context, name string) (string, error) {
	if err := createDatabase(ctx, p.URL(pgSuperuser), name); err != nil {
		return "", err
	}
	return p.URL(name), nil
}

// DropDatabase drops a database, whoever is still connected. That there is none is
// fine.
func (p *Postgres) DropDatabase(ctx context.Context, name string) error {
	return dropDatabase(ctx, p.URL(pgSuperuser), name)
}

// Dir holds the cluster and the log.
func (p *Postgres) Dir() string { return p.d.dir }

// PID is the postmaster's process, 0 while it is not running.
func (p *Postgres) PID() int { return p.d.processID() }

// Stop is PostgreSQL's fast shutdown: sessions are ended, their transactions
// rolled back, a checkpoint written. When ctx ends first the server is killed
// and the error says so. Stopping twice does nothing.
func (p *Postgres) Stop(ctx context.Context) error { return p.d.stop(ctx) }

// Kill ends the postmaster and all its sessions with SIGKILL, like a crash:
// what was not committed is gone, and no session still answers afterwards.
func (p *Postgres) Kill() error {
	// Sessions would notice the postmaster's death only between two
	// statements; a test that kills the server wants no commit after that.
	sessions := childrenOf(p.d.processID())
	err := p.d.kill()
	for _, pid := range sessions {
		// ESRCH: it has noticed by itself.
		if killErr := syscall.Kill(pid, syscall.SIGKILL); killErr != nil && !errors.Is(killErr, syscall.ESRCH) {
			err = errors.Join(err, fmt.Errorf("kill a session of postgres: %w", killErr))
		}
	}
	return err
}

// Start starts the server again on the same port and data; after Kill that
// includes recovery. Starting a running server does nothing.
func (p *Postgres) Start(ctx context.Context) error { return p.d.start(ctx) }

// Close stops the server for good, in order, and removes its data, unless the
// caller had named the directory.
func (p *Postgres) Close() error {
	segment, left := p.sharedMemorySegment()
	err := p.d.close()
	if left {
		removeSharedMemory(segment)
	}
	return err
}

func (p *Postgres) dataDir() string { return filepath.Join(p.d.dir, "data") }

// launch tries again while a killed predecessor's last process still holds the
// data directory, which PostgreSQL refuses to share.
func (p *Postgres) launch(ctx context.Context) (*process, error) {
	for attempt := 1; ; attempt++ {
		proc, err := p.launchOnce(ctx)
		if err == nil {
			return proc, nil
		}
		if _, left := p.sharedMemorySegment(); !left || attempt == 20 || PortTaken(p.d.port) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *Postgres) launchOnce(ctx context.Context) (*process, error) {
	cmd := exec.Command(p.install.program("postgres"), p.arguments()...)
	p.install.asServerUser(cmd, p.d.dir)
	// SIGQUIT is PostgreSQL's immediate shutdown. Unlike SIGKILL it lets the
	// postmaster end its sessions and free its shared memory.
	proc, err := startProcess("postgres", cmd, logFile(p.d.logPath()), syscall.SIGQUIT)
	if err != nil {
		return nil, err
	}
	probe := func(ctx context.Context) error { return pingPostgres(ctx, p.URL(pgSuperuser)) }
	if err := proc.waitReady(ctx, probe); err != nil {
		return nil, errors.Join(err, proc.kill())
	}
	return proc, nil
}

func (p *Postgres) arguments() []string {
	onOff := map[bool]string{true: "on", false: "off"}[p.options.Fsync]
	settings := []string{
		"listen_addresses=127.0.0.1",
		"port=" + strconv.Itoa(p.d.port),
		"unix_socket_directories=" + socketDir(p.d.dir),
		"max_connections=" + strconv.Itoa(p.options.MaxConnections),
		"fsync=" + onOff,
		"full_page_writes=" + onOff,
		"shared_buffers=256MB",
		"max_wal_size=4GB",
		// Containers often have a small /dev/shm; files in the data directory
		// also go away with it after a kill.
		"dynamic_shared_memory_type=mmap",
		"jit=off",
		"timezone=UTC",
		"log_timezone=UTC",
		"logging_collector=off",
		"log_checkpoints=off",
	}
	args := []string{"-D", p.dataDir()}
	for _, s := range settings {
		args = append(args, "-c", s)
	}
	return args
}

// socketDir is empty, which means no socket, where the path would be longer
// than the 107 bytes that Linux allows.
func socketDir(dir string) string {
	if len(dir)+len("/.s.PGSQL.65535.lock") > 107 || strings.ContainsAny(dir, ",\"") {
		return ""
	}
	return dir
}

// sharedMemorySegment reads the segment's ID from the lock file of a server
// that runs or was killed; one that was stopped has removed the file. Line 7
// holds the key and the ID.
func (p *Postgres) sharedMemorySegment() (id int, found bool) {
	text, err := os.ReadFile(filepath.Join(p.dataDir(), "postmaster.pid"))
	if err != nil {
		return 0, false
	}
	lines := strings.Split(string(text), "\n")
	if len(lines) < 7 {
		return 0, false
	}
	fields := strings.Fields(lines[6])
	if len(fields) != 2 {
		return 0, false
	}
	id, err = strconv.Atoi(fields[1])
	return id, err == nil
}

func pingPostgres(ctx context.Context, url string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	return errors.Join(conn.Ping(ctx), conn.Close(ctx))
}

func createDatabase(ctx context.Context, adminURL, name string) error {
	return execute(ctx, adminURL, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize())
}

func dropDatabase(ctx context.Context, adminURL, name string) error {
	return execute(ctx, adminURL, "DROP DATABASE IF EXISTS "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
}

// execute runs one statement on a connection of its own.
func execute(ctx context.Context, url, statement string) error {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", statement, err), conn.Close(ctx))
	}
	return conn.Close(ctx)
}
