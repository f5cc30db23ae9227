#include "tools/memcalc/completion.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

namespace shardplan::memcalc {

std::string completion_script(const std::vector<CompletedCommand>& commands) {
  std::string names;
  std::string cases;
  for (const CompletedCommand& command : commands) {
    names += command.name + " ";
    cases += fmt::format("    {}) words=\"{} \" ;;\n", command.name, fmt::join(command.flags, " "));
  }
  return fmt::format(R"sh(_memcalc() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD-1]}} words=
  case $before in
    --gpu) COMPREPLY=($(compgen -W "$(memcalc gpus --names 2>/dev/null)" -- "$word")); return ;;
    --*-file|--*-config|--megatron-args) COMPREPLY=($(compgen -f -- "$word")); return ;;
  esac
  case ${{COMP_WORDS[1]}} in
{}    *) words="{}--help --version" ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ $COMP_CWORD -ge 2 && $word != -* ]]; then
    COMPREPLY+=($(compgen -W "$(memcalc models --names 2>/dev/null)" -- "$word") $(compgen -f -- "$word"))
  fi
}}
complete -o filenames -F _memcalc memcalc
)sh",
                     cases, names);
}

}  // namespace shardplan::memcalc
