package main

import (
	"crypto/sha256"
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/crossfade-io/crossfade/bridge/api"
)

// TestToken: made, shown once, listed without it, revoked once.
func TestToken(tt *testing.T) {
	t := newQuarantineTest(tt)
	t.exec(`INSERT INTO device_registry (tenant_id, device_id, site_id) VALUES ('acme', 'd1', 's1')`)
	code, out, errs := call(tt, "token", "create", "billing", "--tenant", "acme", "--scope", "read", "--scope", "commands", "--expires", "90d", "--by", "ops")
	secret := strings.TrimSpace(out)
	if code != exitDone || !strings.HasPrefix(secret, "crossfade_") || strings.ContainsAny(secret, " \n") || strings.Contains(errs, secret) || !strings.Contains(errs, "expires at") {
		t.Fatalf("create: exit %d\n%q\n%s", code, out, errs)
	}
	sum := sha256.Sum256([]byte(secret))
	t.wantCount(1, `SELECT count(*) FROM crossfade_api_tokens WHERE sha256 = $1 AND tenant_id = 'acme' AND scopes = '{commands,read}' AND created_by = 'ops'
	  AND expires_at BETWEEN now() + interval '89 days 23 hours' AND now() + interval '90 days'`, sum[:])
	code, out, _ = call(tt, "token", "create", "console", "--all-tenants", "--scope", "shadow", "--output", "json")
	var made struct {
		Secret string `json:"token"`
		api.Token
	}
	if err := json.Unmarshal([]byte(out), &made); err != nil || code != exitDone || !strings.HasPrefix(made.Secret, "crossfade_") || made.Tenant != "" || made.Expires != nil || !made.Valid {
		t.Fatalf("create --output json: exit %d, %v\n%s", code, err, out)
	}
	t.exec(`INSERT INTO crossfade_api_tokens (name, sha256, tenant_id, scopes, expires_at) VALUES (E'old\x1b[2J', sha256('x'), 'acme', '{read}', now() - interval '1 second')`)
	list := func(args ...string) string {
		code, out, errs := call(tt, append([]string{"token", "list"}, args...)...)
		if code != exitDone || strings.Contains(out, secret) || strings.Contains(out, made.Secret) || strings.Contains(out, "\x1b") {
			t.Errorf("list %v: exit %d\n%s%s", args, code, out, errs)
		}
		return out
	}
	if out := list(); !strings.Contains(out, "billing") || !strings.Contains(out, "(all)") || strings.Contains(out, "old") {
		t.Errorf("list:\n%s", out)
	}
	if out := list("--all"); !strings.Contains(out, `old\x1b[2J`) || !strings.Contains(out, "expired") {
		t.Errorf("list --all:\n%s", out)
	}
	id := strconv.FormatInt(made.ID, 10)
	t.answer("no\n")
	if code, _, errs := call(tt, "token", "revoke", id); code != exitNo || !strings.Contains(errs, "Revoke token "+id+", console, for all tenants") {
		t.Errorf("refused: exit %d\n%s", code, errs)
	}
	t.answer("y\n")
	if code, out, errs := call(tt, "token", "revoke", id); code != exitDone || !strings.Contains(out, "is revoked") {
		t.Errorf("revoke: exit %d\n%s%s", code, out, errs)
	}
	if code, _, errs := call(tt, "token", "revoke", id, "--yes"); code != exitNo || !strings.Contains(errs, "revoked already") {
		t.Errorf("revoke again: exit %d\n%s", code, errs)
	}
	if code, _, _ := call(tt, "token", "revoke", "4711", "--yes"); code != exitNo {
		t.Errorf("revoke what is not there: exit %d", code)
	}
	var tokens struct{ Tokens []api.Token }
	if err := json.Unmarshal([]byte(list("--all", "--output", "json")), &tokens); err != nil || len(tokens.Tokens) != 3 || tokens.Tokens[1].Revoked == nil {
		t.Errorf("list --all --output json: %v %+v", err, tokens)
	}
	for _, args := range []string{
		"x --scope read", "x --scope read --tenant acme --all-tenants", "x --tenant acme", "x --tenant acme --scope admin", "x --tenant acme --scope read --expires -1h",
		"x --tenant acme --scope read --expires 2027-01-01", "x --tenant acme --scope read --expires 500ms", "x --tenant acme --scope read --expires soon", "--tenant acme --scope read",
	} {
		if code, out, errs := call(tt, append([]string{"token", "create"}, strings.Fields(args)...)...); code != exitUsage || out != "" || errs == "" {
			t.Errorf("create %s: exit %d\n%s%s", args, code, out, errs)
		}
	}
	if code, _, errs := call(tt, "token", "create", "x", "--tenant", "acm", "--scope", "read"); code == exitDone || !strings.Contains(errs, "acm") {
		t.Errorf("create for a tenant that is not: exit %d\n%s", code, errs)
	}
	if code, _, errs := call(tt, "token", "create", "x", "--tenant", "new", "--scope", "read", "--new"); code != exitDone {
		t.Errorf("create --new: exit %d\n%s", code, errs)
	}
	t.wantCount(4, `SELECT count(*) FROM crossfade_api_tokens`)
}
