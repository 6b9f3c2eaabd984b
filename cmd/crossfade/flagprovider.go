package main

import (
	"fmt"
	"log/slog"

	"github.com/crossfade-io/crossfade/flags"
	"github.com/crossfade-io/crossfade/internal/config"
)

// wireFlagProvider builds the provider that the settings ask for. The store is the
// bridge's own and needs nothing here.
func wireFlagProvider(o *flags.Options, f config.Flags, log *slog.Logger) error {
	o.Timeout, o.Concurrency, o.Rate = f.Timeout, f.Concurrency, float64(f.Rate)
	var err error
	switch f.Provider {
	case config.FlagsFlagd:
		o.Provider, err = flags.NewFlagdProvider(remoteFlags(f, log))
	case config.FlagsOFREP:
		o.Provider, err = flags.NewOFREPProvider(remoteFlags(f, log))
	case config.FlagsFlagdFile:
		fo := flags.DefaultFileOptions()
		fo.Path, fo.Logger = f.File, log
		o.Provider, err = flags.NewFileProvider(fo)
	}
	if err != nil {
		return fmt.Errorf("flag provider %s: %w", f.Provider, err)
	}
	return nil
}

func remoteFlags(f config.Flags, log *slog.Logger) flags.RemoteOptions {
	ro := flags.DefaultRemoteOptions()
	ro.URL, ro.Timeout, ro.Logger = string(f.URL), f.Timeout, log
	ro.CAFile, ro.CertFile, ro.KeyFile, ro.ServerName = f.TLS.CA, f.TLS.Cert, f.TLS.Key, f.TLS.ServerName
	if f.Token != "" || f.TokenFile != "" {
		ro.Token = func() (string, error) {
			token, err := f.ReadToken()
			return token.Reveal(), err
		}
	}
	if f.TokenKind == "api-key" {
		ro.TokenHeader = "X-API-Key"
	}
	return ro
}
