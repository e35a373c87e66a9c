// Renders cases with Go's own text/template and sprig, as a referee for ours: JSON lines in, JSON lines out.
// See make_goldens.py, which runs it.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"runtime"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig/v3"
)

// The structs are in the shape of those that LocalAI hands to its templates.

type Call struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"`
}

type Tool struct {
	Index    int    `json:"index"`
	ID       string `json:"id"`
	Type     string `json:"type"`
	Function Call   `json:"function"`
}

type Function struct {
	Name        string                 `json:"name"`
	Description string                 `json:"description"`
	Strict      bool                   `json:"strict"`
	Parameters  map[string]interface{} `json:"parameters"`
}

type Message struct {
	SystemPrompt string
	Role         string
	RoleName     string
	Content      string
	FunctionCall interface{}
	Function     bool
	MessageIndex int
	LastMessage  bool
}

type Prompt struct {
	SystemPrompt         string
	SuppressSystemPrompt bool
	Input                string
	Functions            []Function
	MessageIndex         int
	Metadata             map[string]string
	Last                 *Message
	Scores               []float64
	Hidden               string `json:"-"`
}

var types = map[string]reflect.Type{
	"main.Call":     reflect.TypeOf(Call{}),
	"main.Tool":     reflect.TypeOf(Tool{}),
	"main.Function": reflect.TypeOf(Function{}),
	"main.Message":  reflect.TypeOf(Message{}),
	"main.Prompt":   reflect.TypeOf(Prompt{}),
}

// A request's data is JSON; {"$go": TYPE, FIELD: VALUE, ...} is a struct, a pointer to one when TYPE begins with *.
func build(value interface{}) interface{} {
	switch value := value.(type) {
	case json.Number:
		if strings.ContainsAny(value.String(), ".eE") {
			number, _ := value.Float64()
			return number
		}
		number, _ := value.Int64()
		return int(number)
	case []interface{}:
		for i := range value {
			value[i] = build(value[i])
		}
		return value
	case map[string]interface{}:
		name, ok := value["$go"].(string)
		if ok {
			return fill(name, value)
		}
		for key := range value {
			value[key] = build(value[key])
		}
		return value
	}
	return value
}

func fill(name string, fields map[string]interface{}) interface{} {
	made := reflect.New(types[strings.TrimPrefix(name, "*")])
	for key, field := range fields {
		if key != "$go" {
			put(made.Elem().FieldByName(key), build(field))
		}
	}
	if strings.HasPrefix(name, "*") {
		return made.Interface()
	}
	return made.Elem().Interface()
}

func put(place reflect.Value, value interface{}) {
	given := reflect.ValueOf(value)
	switch {
	case value == nil:
	case given.Type().AssignableTo(place.Type()):
		place.Set(given)
	case place.Kind() == reflect.Slice:
		made := reflect.MakeSlice(place.Type(), given.Len(), given.Len())
		for i := 0; i < given.Len(); i++ {
			put(made.Index(i), given.Index(i).Interface())
		}
		place.Set(made)
	case place.Kind() == reflect.Map:
		made := reflect.MakeMap(place.Type())
		for _, key := range given.MapKeys() {
			made.SetMapIndex(key, given.MapIndex(key).Elem())
		}
		place.Set(made)
	default:
		panic(fmt.Sprintf("cannot put %T into %s", value, place.Type()))
	}
}

type request struct {
	Template string
	Data     interface{}
}

func answer(line []byte) map[string]string {
	var asked request
	decoder := json.NewDecoder(strings.NewReader(string(line)))
	decoder.UseNumber()
	if err := decoder.Decode(&asked); err != nil {
		return map[string]string{"broken": err.Error()}
	}
	parsed, err := template.New("prompt").Funcs(sprig.TxtFuncMap()).Parse(asked.Template)
	if err != nil {
		return map[string]string{"parse_error": err.Error()}
	}
	var out strings.Builder
	if err := parsed.Execute(&out, build(asked.Data)); err != nil {
		return map[string]string{"error": err.Error()}
	}
	return map[string]string{"output": out.String()}
}

func main() {
	encoder := json.NewEncoder(os.Stdout)
	encoder.Encode(map[string]string{"version": runtime.Version()})
	scanner := bufio.NewScanner(os.Stdin)
	scanner.Buffer(nil, 1<<24)
	for scanner.Scan() {
		encoder.Encode(answer(scanner.Bytes()))
	}
}
