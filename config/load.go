package config

import (
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"

	"github.com/spf13/viper"
)

// fileBytesMax bounds what is read: a configuration is small, a wrong path may not be.
const fileBytesMax = 1 << 20

// Load reads a file, adds environment and defaults, fills in what is derived, and checks all of
// it. The error is of type Problems if the content is at fault. An empty path reads no file.
func Load(path string) (Config, error) {
	var data []byte
	if path != "" {
		var err error
		if data, err = readFile(path); err != nil {
			return Config{}, fmt.Errorf("read configuration: %w", err)
		}
	}
	cfg, from, err := parse(path, data)
	if err != nil {
		return Config{}, err
	}
	if err := cfg.derive(); err != nil {
		return Config{}, err
	}
	if problems := cfg.validate(from); len(problems) > 0 {
		return Config{}, problems.sorted()
	}
	return *cfg, nil
}

// Parse reads a configuration and adds environment and defaults, without the rules across
// sections that Load checks. The name stands for the file in errors.
func Parse(name string, data []byte) (Config, error) {
	cfg, _, err := parse(name, data)
	if err != nil {
		return Config{}, err
	}
	return *cfg, nil
}

func parse(name string, data []byte) (*Config, *origin, error) {
	if len(data) > fileBytesMax {
		return nil, nil, Problems{{File: name,
			Text: fmt.Sprintf("larger than %d bytes, so not a configuration", fileBytesMax)}}
	}
	w := walker{from: newOrigin(name)}
	tree := w.walkFile(data)
	lists := w.walkEnv()
	if len(w.problems) > 0 {
		return nil, nil, w.problems.sorted()
	}
	cfg, err := decode(tree, lists)
	if err != nil {
		// The walk is the stricter pass, so this is not expected; but if they ever differ the
		// answer is a refusal.
		return nil, nil, Problems{{File: name, Text: err.Error()}}
	}
	return cfg, w.from, nil
}

// decode lets viper merge file, environment and defaults.
func decode(tree map[string]any, lists map[string]any) (*Config, error) {
	v := viper.New()
	var bindErr error
	defaults := Default()
	eachLeaf(&root, "", reflect.ValueOf(defaults), func(_ *field, key string, val reflect.Value) {
		v.SetDefault(key, val.Interface())
		if err := v.BindEnv(key, EnvName(key)); err != nil && bindErr == nil {
			bindErr = err
		}
	})
	if bindErr != nil {
		return nil, fmt.Errorf("bind environment: %w", bindErr)
	}
	if err := v.MergeConfigMap(tree); err != nil {
		return nil, fmt.Errorf("merge: %w", err)
	}
	for key, list := range lists {
		v.Set(key, list)
	}
	var cfg Config
	if err := v.UnmarshalExact(&cfg); err != nil {
		return nil, fmt.Errorf("decode: %w", err)
	}
	// An empty list and none are the same; one form makes trees comparable.
	eachLeaf(&root, "", reflect.ValueOf(&cfg).Elem(), func(f *field, _ string, v reflect.Value) {
		if (f.kind == kindStrings || f.kind == kindSections) && v.Len() == 0 {
			v.SetZero()
		}
	})
	return &cfg, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		if os.IsNotExist(err) {
			return nil, fmt.Errorf("%w; `holdfast config example` prints one to start from", err)
		}
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, fileBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return data, nil
}

// origin remembers where each value came from, for errors that are found later.
type origin struct {
	file  string
	lines map[string]int
	env   map[string]string
}

func newOrigin(file string) *origin {
	return &origin{file: file, lines: map[string]int{}, env: map[string]string{}}
}

// problem returns a Problem of a key with the place that its value, or the nearest section around
// it, came from.
func (o *origin) problem(key, text string) Problem {
	p := Problem{Key: key, File: o.file, Text: text}
	for at := key; at != ""; at = parent(at) {
		if env, ok := o.env[at]; ok {
			p.Env = env
			return p
		}
		if line, ok := o.lines[at]; ok {
			p.Line = line
			return p
		}
	}
	return p
}

// parent cuts the last part of a path: a.b[1].c, a.b[1], a.b, a.
func parent(key string) string {
	for i := len(key) - 1; i > 0; i-- {
		if key[i] == '.' || key[i] == '[' {
			return key[:i]
		}
	}
	return ""
}

// sorted returns the problems in the order of the file, those of the environment last.
func (p Problems) sorted() Problems {
	slices.SortStableFunc(p, func(a, b Problem) int {
		if (a.Env == "") != (b.Env == "") {
			if a.Env == "" {
				return -1
			}
			return 1
		}
		return a.Line - b.Line
	})
	return p
}
