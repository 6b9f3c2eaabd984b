package config

import (
	"fmt"
	"net/url"
	"os"
	"time"
)

// The flag providers.
const (
	FlagsStore     = "store"
	FlagsFlagd     = "flagd"
	FlagsFlagdFile = "flagd-file"
	FlagsOFREP     = "ofrep"
)

// Flags is who says which stage is wanted for a tenant (docs/flags.md).
type Flags struct {
	Provider    string        `name:"flags-provider" env:"CROSSFADE_FLAGS_PROVIDER" default:"store" enum:"store,flagd,flagd-file,ofrep" help:"Who says which stage is wanted for a tenant: ${enum}. With any but store, what crossfade flip sets for a tenant overrides it. All instances must agree."`
	URL         Endpoint      `name:"flags-url" env:"CROSSFADE_FLAGS_URL" placeholder:"URL" help:"The flag service of --flags-provider flagd or ofrep: http://host:8013, or https://… for TLS; for OFREP with the path below which /ofrep/v1 is."`
	File        string        `name:"flags-file" env:"CROSSFADE_FLAGS_FILE" type:"filename" placeholder:"FILE" help:"The flag definitions of --flags-provider flagd-file, in flagd's JSON format. At most 4 MiB; read anew every second."`
	Token       Secret        `name:"flags-token" env:"CROSSFADE_FLAGS_TOKEN" placeholder:"TOKEN" help:"Credential for the flag service. Prefer the file."`
	TokenFile   string        `name:"flags-token-file" env:"CROSSFADE_FLAGS_TOKEN_FILE" type:"filename" placeholder:"FILE" help:"File that holds the credential for the flag service. At most 64 KiB; a newline at the end is cut."`
	TokenKind   string        `name:"flags-token-kind" env:"CROSSFADE_FLAGS_TOKEN_KIND" default:"bearer" enum:"bearer,api-key" help:"How the credential is sent: ${enum} (Authorization: Bearer …, or X-API-Key)."`
	TLS         TLS           `embed:"" prefix:"flags-tls-" envprefix:"CROSSFADE_FLAGS_TLS_"`
	Timeout     time.Duration `name:"flags-timeout" env:"CROSSFADE_FLAGS_TIMEOUT" default:"2s" range:"10ms..1m" help:"How long one evaluation may take. No answer by then is no answer: the tenant stays where it is."`
	Concurrency int           `name:"flags-concurrency" env:"CROSSFADE_FLAGS_CONCURRENCY" default:"8" range:"1..64" help:"Most evaluations under way at the flag service at once, per instance."`
	Rate        int           `name:"flags-rate" env:"CROSSFADE_FLAGS_RATE" default:"500" range:"1..100000" help:"Most evaluations a second at the flag service, per instance. Divided into the number of tenants, it is how long a change may take to be seen for all of them."`
}

// Remote reports whether the provider is a service that is reached by URL.
func (f Flags) Remote() bool { return f.Provider == FlagsFlagd || f.Provider == FlagsOFREP }

// ReadToken returns the credential, from TokenFile where that is set. It reads the
// file each time, so a rotated credential counts from the next request on.
func (f Flags) ReadToken() (Secret, error) {
	return secretOrFile(f.Token, f.TokenFile, "flags-token-file")
}

func (f *Flags) validate(p *problems, files bool) {
	if f.Remote() {
		f.validateRemote(p, files)
	} else if f.URL != "" || f.Token != "" || f.TokenFile != "" || f.TLS.Set() {
		p.add("flags-provider", fmt.Sprintf("%s uses no URL, token or TLS, but one of them is given", f.Provider),
			"set it to flagd or ofrep, or remove those")
	}
	if f.Provider != FlagsFlagdFile {
		if f.File != "" {
			p.add("flags-file", "is given, but --flags-provider is "+f.Provider, "set --flags-provider flagd-file, or remove it")
		}
		return
	}
	if f.File == "" {
		p.add("flags-file", "is empty", "name the file of flag definitions")
	} else if info, err := os.Stat(f.File); files && err != nil {
		p.add("flags-file", "cannot be read: "+err.Error(), "name a readable file of flag definitions in flagd's format")
	} else if files && !info.Mode().IsRegular() {
		p.add("flags-file", "is no regular file", "name a file of flag definitions in flagd's format")
	}
}

func (f *Flags) validateRemote(p *problems, files bool) {
	u, err := url.Parse(string(f.URL))
	switch {
	case f.URL == "":
		p.add("flags-url", "no flag service is given", "set it to http://host:8013 or https://host:port")
	case err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https":
		p.add("flags-url", "is not the URL of a flag service", "write http://host:port or https://host:port")
	case u.User != nil:
		p.add("flags-url", "holds credentials, and URLs end up in logs and process lists", "remove them and set --flags-token-file")
	case u.RawQuery != "" || u.Fragment != "":
		p.add("flags-url", "holds a query or a fragment", "leave them out")
	case u.Scheme == "http" && f.TLS.Set():
		p.add("flags-url", "is http://, but TLS settings are given that would have no effect", "use https://, or remove the --flags-tls-… settings")
	}
	if f.Token != "" && f.TokenFile != "" {
		p.add("flags-token-file", "is set together with --flags-token", "keep one of them")
	}
	f.TLS.validate(p, "flags", files)
	if files {
		secretFile(p, "flags-token-file", f.TokenFile)
	}
}

func (f *Flags) warnings(w *warnings) {
	if f.Remote() && (f.Token != "" || f.TokenFile != "") {
		w.plaintext("flags-url", f.URL, "http", "use https://")
	}
}
