package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/crossfade-io/crossfade/internal/devstack"
)

// demoDatabase is an empty database of the demo's own: on a private PostgreSQL, or
// on the one that DATABASE_URL names.
type demoDatabase struct {
	url     string
	private bool
	name    string
	where   string // host:port, for people
	close   func() error
}

func openDemoDatabase(ctx context.Context) (*demoDatabase, error) {
	if given := os.Getenv("DATABASE_URL"); given != "" {
		return borrowDemoDatabase(ctx, given)
	}
	p, err := devstack.StartPostgres(ctx, devstack.PostgresOptions{})
	if err != nil {
		return nil, err
	}
	d := &demoDatabase{private: true, name: "crossfade", close: p.Close}
	if d.url, err = p.CreateDatabase(ctx, d.name); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	d.where, err = demoHost(d.url)
	return d, err
}

// borrowDemoDatabase creates a database beside the given one, which is not touched.
func borrowDemoDatabase(ctx context.Context, admin string) (*demoDatabase, error) {
	where, err := demoHost(admin)
	if err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	d := &demoDatabase{name: fmt.Sprintf("crossfade_demo_%d_%s", os.Getpid(), strings.ToLower(rand.Text())), where: where}
	if d.url, err = withDemoDatabase(admin, d.name); err != nil {
		return nil, fmt.Errorf("DATABASE_URL: %w", err)
	}
	quoted := pgx.Identifier{d.name}.Sanitize()
	if err := demoStatement(ctx, admin, "CREATE DATABASE "+quoted); err != nil {
		return nil, fmt.Errorf("DATABASE_URL is set, so the demo makes a database of its own there: %w (unset it to have a private PostgreSQL started)", err)
	}
	d.close = func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := demoStatement(ctx, admin, "DROP DATABASE IF EXISTS "+quoted+" WITH (FORCE)"); err != nil {
			return fmt.Errorf("the demo's database is left on %s, drop it by hand: %w", where, err)
		}
		return nil
	}
	return d, nil
}

func demoStatement(ctx context.Context, admin, statement string) error {
	conn, err := pgx.Connect(ctx, admin) // pgx leaves passwords out of its errors
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	if err != nil {
		err = fmt.Errorf("%s: %w", statement, err)
	}
	return errors.Join(err, conn.Close(ctx))
}

// demoHost is where a connection string leads.
func demoHost(connection string) (string, error) {
	c, err := pgx.ParseConfig(connection)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s:%d", c.Host, c.Port), nil
}

// withDemoDatabase replaces the database in a connection string of either form
// that libpq knows.
func withDemoDatabase(connection, name string) (string, error) {
	if !strings.HasPrefix(connection, "postgres://") && !strings.HasPrefix(connection, "postgresql://") {
		return connection + " dbname='" + name + "'", nil
	}
	u, err := url.Parse(connection)
	if err != nil {
		return "", errors.New("it is no valid URL") // the parser's error would quote the password
	}
	u.Path, u.RawPath = "/"+name, ""
	query := u.Query()
	query.Del("dbname")
	u.RawQuery = query.Encode()
	return u.String(), nil
}
