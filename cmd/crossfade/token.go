package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/crossfade-io/crossfade/bridge/api"
	"github.com/crossfade-io/crossfade/internal/config"
)

type tokenCommand struct {
	Create tokenCreateCommand `cmd:"" help:"Make a token for a back end. It is shown once."`
	List   tokenListCommand   `cmd:"" help:"List tokens: whose they are, what they may do, when they were used last."`
	Revoke tokenRevokeCommand `cmd:"" help:"End a token for good."`
}

type tokenCreateCommand struct {
	Name       string          `arg:"" help:"Who uses it, for people: 1 to 128 characters."`
	Tenant     string          `placeholder:"TENANT" help:"The tenant that it is for."`
	AllTenants bool            `help:"It is for every tenant."`
	Scope      []string        `placeholder:"SCOPE" help:"What it may do, one or more of shadow, commands, ingest, read."`
	Expires    string          `placeholder:"TIME" help:"How long it is good for, as 90d or 12h. Default: until it is revoked."`
	By         string          `help:"Who makes it, for the record. Default: the user." placeholder:"NAME"`
	New        bool            `help:"Allow a tenant that has no device yet."`
	Output     string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common     config.Common   `embed:"" group:"General"`
	Database   config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (tokenCreateCommand) Help() string {
	return `Back ends send the token as "Authorization: Bearer …". Only its SHA-256 is kept: nobody can show it again. The text form prints the token alone on standard output, and the rest on standard error.

Scopes: shadow (desired states), commands, ingest (messages in the name of any device of the tenant), read (shadows and commands, without changing them).

Examples:

  crossfade token create billing --tenant acme --scope read --expires 90d
  crossfade token create console --all-tenants --scope shadow --scope commands > token`
}

// Run makes a token.
func (t *tokenCreateCommand) Run(ctx context.Context, c *console) error {
	if t.AllTenants == (t.Tenant != "") {
		return usageError{errors.New("name the tenant with --tenant, or pass --all-tenants")}
	}
	expires, err := lifetime("--expires", t.Expires)
	if err != nil {
		return err
	}
	n := api.NewToken{Name: t.Name, Tenant: t.Tenant, Scopes: t.Scope, Expires: expires, By: who(t.By)}
	if err := n.Validate(); err != nil {
		return usageError{err}
	}
	pool, err := openPool(ctx, t.Database, "crossfade token create")
	if err != nil {
		return err
	}
	defer pool.Close()
	if t.Tenant != "" && !t.New {
		if err := refuseUnknown(ctx, pool, []string{t.Tenant}); err != nil {
			return err
		}
	}
	secret, made, err := api.CreateToken(ctx, pool, n)
	if err != nil {
		return err
	}
	if t.Output == "json" {
		return writeJSON(c.out, struct {
			Secret string `json:"token"`
			api.Token
		}{secret, made})
	}
	fmt.Fprintf(c.err, "token %d, %s, for %s: %s. It is shown this once; %s\n",
		made.ID, printable(made.Name), tokenTenant(made.Tenant), strings.Join(made.Scopes, ", "), tokenEnd(made))
	_, err = fmt.Fprintln(c.out, secret)
	return err
}

// lifetime reads a duration, in days too; "" is 0.
func lifetime(flag, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	now := time.Now()
	at, err := parseMoment(flag, s, now)
	d := now.Sub(at)
	if err != nil || d < time.Second || d.Truncate(time.Second) != d {
		return 0, usageError{fmt.Errorf("%s is %q: give how long, as 90d, 12h or 30m", flag, s)}
	}
	return d, nil
}

func tokenTenant(tenant string) string {
	if tenant == "" {
		return "all tenants"
	}
	return "tenant " + printable(tenant)
}

func tokenEnd(t api.Token) string {
	if t.Expires == nil {
		return "it is good until it is revoked"
	}
	return "it expires at " + moment(*t.Expires)
}

type tokenListCommand struct {
	All      bool            `help:"Those that are revoked or expired too."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (tokenListCommand) Help() string {
	return `Times are in UTC. The last use is noted once an hour: one that has long been unused can be revoked.

Examples:

  crossfade token list
  crossfade token list --all --output json`
}

// Run lists.
func (l *tokenListCommand) Run(ctx context.Context, c *console) error {
	pool, err := openPool(ctx, l.Database, "crossfade token list")
	if err != nil {
		return err
	}
	defer pool.Close()
	tokens, err := api.Tokens(ctx, pool, l.All)
	if err != nil {
		return err
	}
	if l.Output == "json" {
		return writeJSON(c.out, struct {
			Tokens []api.Token `json:"tokens"`
		}{append([]api.Token{}, tokens...)})
	}
	w := tabwriter.NewWriter(c.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tNAME\tTENANT\tSCOPES\tSTATE\tEXPIRES\tLAST USED\tMADE")
	for _, t := range tokens {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s by %s\n", t.ID, cell(t.Name, 40), tokenTenantCell(t.Tenant), strings.Join(t.Scopes, ","), tokenState(t),
			momentOr(t.Expires), momentOr(t.Used), moment(t.Created), cell(t.By, 20))
	}
	return w.Flush()
}

func tokenTenantCell(tenant string) string {
	if tenant == "" {
		return "(all)"
	}
	return cell(tenant, 40)
}

func tokenState(t api.Token) string {
	switch {
	case t.Revoked != nil:
		return "revoked"
	case !t.Valid:
		return "expired"
	}
	return "valid"
}

func momentOr(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return moment(*t)
}

type tokenRevokeCommand struct {
	ID       int64           `arg:"" help:"The token's ID, as crossfade token list shows it."`
	Yes      bool            `short:"y" help:"Do not ask."`
	Output   string          `enum:"text,json" default:"text" help:"Form of the answer: ${enum}."`
	Common   config.Common   `embed:"" group:"General"`
	Database config.Database `embed:"" group:"PostgreSQL"`
}

// Help is shown by --help below the summary.
func (tokenRevokeCommand) Help() string {
	return `Instances may believe in the token for five seconds more. It cannot be taken back: make a new one.

Exit code 3 when there is no such token, it is revoked already, or the answer to the question was no.

Examples:

  crossfade token revoke 17
  crossfade token revoke 17 --yes --output json`
}

// Run asks, and revokes.
func (r *tokenRevokeCommand) Run(ctx context.Context, c *console) error {
	pool, err := openPool(ctx, r.Database, "crossfade token revoke")
	if err != nil {
		return err
	}
	defer pool.Close()
	if !r.Yes {
		tokens, err := api.Tokens(ctx, pool, true)
		if err != nil {
			return err
		}
		for _, t := range tokens {
			if t.ID != r.ID || t.Revoked != nil {
				continue
			}
			question := fmt.Sprintf("Revoke token %d, %s, for %s, last used %s?", t.ID, printable(t.Name), tokenTenant(t.Tenant), momentOr(t.Used))
			if err := confirm(ctx, c, question); err != nil {
				return err
			}
		}
	}
	t, err := api.RevokeToken(ctx, pool, r.ID)
	switch {
	case errors.Is(err, api.ErrNoToken):
		return fmt.Errorf("%w: %w", errNo, err)
	case err != nil:
		return err
	case r.Output == "json":
		return writeJSON(c.out, t)
	}
	_, err = fmt.Fprintf(c.out, "token %d, %s, is revoked\n", t.ID, printable(t.Name))
	return err
}
