package devstack

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/jackc/pgx/v5"
)

// Database is an empty database of the caller's own, on the PostgreSQL that
// DATABASE_URL names or on a private one. Close drops it.
type Database struct {
	url     string
	name    string
	address string
	private bool
	close   func() error
}

// NewDatabase creates a database. Where DATABASE_URL is set it is created there,
// beside the one that the URL names, which is not touched; the URL's user must be
// allowed to create databases. It is then called name, underscore, this process's
// ID, and something that no other has. Otherwise a private PostgreSQL is started,
// where it is called name. That is at most 30 lower-case letters, digits and
// underscores.
func NewDatabase(ctx context.Context, name string) (*Database, error) {
	if given := os.Getenv("DATABASE_URL"); given != "" {
		d, err := databaseBeside(ctx, given, name)
		if err != nil {
			return nil, fmt.Errorf("DATABASE_URL is set, so a database is created there: %w (unset it to have a private PostgreSQL started)", err)
		}
		return d, nil
	}
	p, err := StartPostgres(ctx, PostgresOptions{})
	if err != nil {
		return nil, err
	}
	url, err := p.CreateDatabase(ctx, name)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return &Database{url: url, name: name, address: p.address(), private: true, close: p.Close}, nil
}

// databaseBeside creates a database on the server of another one's URL.
func databaseBeside(ctx context.Context, admin, name string) (*Database, error) {
	server, err := pgx.ParseConfig(admin) // pgx leaves passwords out of its errors
	if err != nil {
		return nil, err
	}
	d := &Database{
		name:    fmt.Sprintf("%s_%d_%s", name, os.Getpid(), strings.ToLower(randomSecret())),
		address: fmt.Sprintf("%s:%d", server.Host, server.Port),
	}
	if d.url, err = withDatabase(admin, d.name); err != nil {
		return nil, err
	}
	ctx, cancel := withLimit(ctx, startLimit)
	defer cancel()
	if err := createDatabase(ctx, admin, d.name); err != nil {
		return nil, err
	}
	d.close = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), startLimit)
		defer cancel()
		if err := dropDatabase(ctx, admin, d.name); err != nil {
			return fmt.Errorf("database %s is left on %s, drop it by hand: %w", d.name, d.address, err)
		}
		return nil
	}
	return d, nil
}

// URL connects to the database, as the user of DATABASE_URL or as a private
// server's superuser; it holds the password. Where DATABASE_URL is in libpq's
// key=value form, so is this.
func (d *Database) URL() string { return d.url }

// Name is the database's own.
func (d *Database) Name() string { return d.name }

// Address is host:port of the server.
func (d *Database) Address() string { return d.address }

// Private reports whether the server was started for this database.
func (d *Database) Private() bool { return d.private }

// Close drops the database, whoever is still connected, and stops and removes a
// private server.
func (d *Database) Close() error { return d.close() }

// withDatabase replaces the database in a connection string of either form
// that libpq knows, which pgx must have parsed before.
func withDatabase(connection, database string) (string, error) {
	if !strings.HasPrefix(connection, "postgres://") && !strings.HasPrefix(connection, "postgresql://") {
		return connection + " dbname='" + database + "'", nil
	}
	u, err := url.Parse(connection)
	if err != nil {
		return "", errors.New("it is no valid URL") // the parser's error would quote the password
	}
	u.Path, u.RawPath = "/"+database, ""
	query := u.Query()
	query.Del("dbname")
	u.RawQuery = query.Encode()
	return u.String(), nil
}

// withUser replaces the user, as withDatabase does the database.
func withUser(connection, user, password string) (string, error) {
	if !strings.HasPrefix(connection, "postgres://") && !strings.HasPrefix(connection, "postgresql://") {
		return connection + " user='" + user + "' password='" + password + "'", nil
	}
	u, err := url.Parse(connection)
	if err != nil {
		return "", errors.New("it is no valid URL")
	}
	u.User = url.UserPassword(user, password)
	query := u.Query()
	query.Del("user")
	query.Del("password")
	u.RawQuery = query.Encode()
	return u.String(), nil
}
